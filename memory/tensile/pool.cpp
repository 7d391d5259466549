// An allocator for torch's CPU tensors that gives freed memory back, but not too soon.
//
// glibc either keeps large freed blocks for good, or maps and zeroes fresh pages for each tensor.
// Here freed blocks wait for the next tensor of their size for as long as a limit allows. Where it
// does not, the pages of those that waited longest move to the new tensor's address: to move a page
// takes a hundredth of the time that the system needs to take it back and give a zeroed one.
// Blocks are whole pages, so that they can be read and written round the page cache.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <list>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kSmall = 64 * 1024;  // below it the heap is quicker
constexpr size_t kNoLimit = std::numeric_limits<size_t>::max();
constexpr size_t kMostPieces = 64;  // the system keeps books of each, and allows so many only

// `pieces` is the number of mappings that it may consist of, at most.
struct Block {
  char* address;
  size_t size;
  size_t pieces;
};
using Blocks = std::list<Block>;

// Fresh pages, exactly at `place` if that is given; nullptr where the system has none.
char* mapped(size_t size, char* place = nullptr) {
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | (place == nullptr ? 0 : MAP_FIXED);
  void* address = mmap(place, size, PROT_READ | PROT_WRITE, flags, -1, 0);
  return address == MAP_FAILED ? nullptr : static_cast<char*>(address);
}

// The pages come to `place` and are no longer at `from`. An older system moves no more than one
// mapping at once; where it refuses, the pages are gone and `place` has fresh ones.
bool moved(char* from, size_t size, char* place) {
  if (mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, place) != MAP_FAILED) return true;
  munmap(from, size);
  return mapped(size, place) != nullptr;  // it may have unmapped what was there
}

struct Books {
  std::mutex mutex;
  Blocks waiting;  // the longest first
  std::unordered_map<size_t, std::vector<Blocks::iterator>> by_size;
  std::unordered_map<void*, Block> lent;
  std::atomic<size_t> waiting_bytes = 0;
  std::atomic<size_t> lent_bytes = 0;
  size_t most_waiting_bytes = 0;  // no more may wait, …
  size_t limit_bytes = kNoLimit;  // … nor wait and be lent together

  void wait(Block block, bool longest = false) {
    auto place = waiting.insert(longest ? waiting.begin() : waiting.end(), block);
    by_size[block.size].push_back(place);
    waiting_bytes += block.size;
  }

  Block removed(Blocks::iterator place) {
    Block block = *place;
    auto found = by_size.find(block.size);
    auto& same = found->second;
    same.erase(std::find(same.begin(), same.end(), place));
    if (same.empty()) by_size.erase(found);
    waiting_bytes -= block.size;
    waiting.erase(place);
    return block;
  }

  // What may wait when so much more is lent.
  size_t may_wait(size_t more_lent = 0) const {
    size_t lent_then = lent_bytes + more_lent;
    return std::min(most_waiting_bytes, limit_bytes - std::min(limit_bytes, lent_then));
  }

  void shrink(size_t target_bytes) {
    while (waiting_bytes > target_bytes) {
      Block oldest = removed(waiting.begin());
      size_t part = std::min<size_t>(oldest.size, waiting_bytes + oldest.size - target_bytes);
      munmap(oldest.address, part);
      if (part < oldest.size) {
        wait({oldest.address + part, oldest.size - part, oldest.pieces}, /*longest=*/true);
      }
    }
  }

  // A block of this size that waits, or one of new pages and of those that may wait no more.
  Block found(size_t size) {
    auto same = by_size.find(size);
    if (same != by_size.end()) return removed(same->second.back());
    Block block{mapped(size), size, 1};
    size_t may = may_wait(size), filled = 0;
    while (block.address != nullptr && filled < size && waiting_bytes > may &&
           block.pieces + waiting.front().pieces < kMostPieces) {
      Block oldest = removed(waiting.begin());
      size_t part = std::min({oldest.size, size - filled, waiting_bytes + oldest.size - may});
      bool whole = moved(oldest.address, part, block.address + filled);
      if (part < oldest.size) {
        wait({oldest.address + part, oldest.size - part, oldest.pieces}, /*longest=*/true);
      }
      if (!whole) {
        munmap(block.address, size);
        block.address = nullptr;
      }
      filled += part;
      block.pieces += oldest.pieces;
    }
    return block;
  }
};

Books& books() {
  static Books* kept = new Books;  // tensors may die after every static object has
  return *kept;
}

// Asked for room when the system has none; answers whether it is worth to try once more.
using Relief = int (*)(size_t bytes);
std::atomic<Relief> relief{nullptr};

void* block(size_t size) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  Block found = b.found(size);
  if (found.address == nullptr) {
    b.shrink(0);
    found = b.found(size);
  }
  if (found.address != nullptr) {
    b.lent[found.address] = found;
    b.lent_bytes += size;
    b.shrink(b.may_wait());
  }
  return found.address;
}

void* pages(size_t bytes) {
  size_t size = (bytes + kPage - 1) / kPage * kPage;
  void* address = block(size);
  if (address != nullptr) return address;
  Relief ask = relief.load();  // called without the lock, since it frees
  return ask != nullptr && ask(size) != 0 ? block(size) : nullptr;
}

void* taken(size_t bytes) {
  if (bytes == 0) return nullptr;
  void* address = nullptr;
  if (bytes >= kSmall) {
    address = pages(bytes);
  } else if (posix_memalign(&address, 64, bytes) != 0) {
    address = nullptr;
  }
  TORCH_CHECK(address != nullptr, "DefaultCPUAllocator: can't allocate memory: you tried to allocate ",
              bytes, " bytes.");
  return address;
}

void given(void* address) {
  if (reinterpret_cast<std::uintptr_t>(address) % kPage == 0 && address != nullptr) {
    Books& b = books();
    std::lock_guard<std::mutex> guard(b.mutex);
    auto found = b.lent.find(address);
    if (found != b.lent.end()) {
      b.wait(found->second);
      b.lent_bytes -= found->second.size;
      b.lent.erase(found);
      b.shrink(b.may_wait());
      return;
    }
  }
  free(address);
}

struct Pool final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* address = taken(bytes);
    return {address, address, &given, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &given; }
  void copy_data(void* target, const void* source, size_t count) const override {
    std::memcpy(target, source, count);
  }
};

}  // namespace

extern "C" {

void tensile_pool_install() {
  static Pool* pool = new Pool;
  // a child that is forked while another thread holds the lock would wait for it for ever
  pthread_atfork([] { books().mutex.lock(); }, [] { books().mutex.unlock(); },
                 [] { books().mutex.unlock(); });
  c10::SetCPUAllocator(pool, /*priority=*/100);
}

// From here on `ask` is called before an allocation fails; nobody is if it is null.
void tensile_pool_on_full(Relief ask) { relief.store(ask); }

// From here on no more than `waiting` bytes wait, and no more than `limit` do and are lent together
// (unless more are lent). Answers how many wait.
size_t tensile_pool_keep(size_t waiting, size_t limit) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  b.most_waiting_bytes = waiting / kPage * kPage;
  b.limit_bytes = limit / kPage * kPage;
  b.shrink(b.may_wait());
  return b.waiting_bytes;
}

size_t tensile_pool_waiting() { return books().waiting_bytes; }

size_t tensile_pool_lent() { return books().lent_bytes; }
}
