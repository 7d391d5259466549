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
#include <utility>
#include <vector>

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kSmall = 64 * 1024;  // below it the heap is quicker
constexpr size_t kNoLimit = std::numeric_limits<size_t>::max();
constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, which older headers lack
constexpr size_t kMostPieces = 64;  // of a block: the system allows so many mappings only

struct Block {
  char* address;
  size_t size;
  std::vector<size_t> pieces;  // how large each of its mappings is, in order
  bool whole;                  // every page is there; the system gives one when it is touched
};
using Blocks = std::list<Block>;

// The first `size` bytes of a block, which keeps the rest.
Block cut(Block& block, size_t size) {
  Block front{block.address, size, {}, block.whole};
  auto piece = block.pieces.begin();
  for (size_t left = size; left > 0; left -= front.pieces.back()) {
    front.pieces.push_back(std::min(*piece, left));
    *piece -= front.pieces.back();
    if (*piece == 0) ++piece;
  }
  block.pieces.erase(block.pieces.begin(), piece);
  block.address += size;
  block.size -= size;
  return front;
}

// Fresh pages, exactly at `place` if that is given; nullptr where the system has none.
char* mapped(size_t size, char* place = nullptr) {
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | (place == nullptr ? 0 : MAP_FIXED);
  void* address = mmap(place, size, PROT_READ | PROT_WRITE, flags, -1, 0);
  return address == MAP_FAILED ? nullptr : static_cast<char*>(address);
}

// The pages come to `place`; where the system refuses, they are gone and `place` has fresh ones.
bool moved(const Block& block, char* place) {
  char* from = block.address;
  for (size_t size : block.pieces) {
    if (mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, place) == MAP_FAILED) {
      munmap(from, size);
      if (mapped(size, place) == nullptr) return false;  // what was there may be unmapped
    }
    from += size;
    place += size;
  }
  return true;
}

bool populated(char* address, size_t size) {
  return madvise(address, size, kPopulateWrite) == 0;  // since Linux 5.14
}

// What an operator left untouched comes too: what waits is what it takes.
void complete(Block& block) {
  for (size_t at = 0; at < block.size && !block.whole; at += kPage) {
    volatile char* page = block.address + at;
    *page = *page;
  }
  block.whole = true;
}

struct Books {
  std::mutex mutex;
  Blocks waiting;  // the longest first; all of them whole
  std::unordered_map<size_t, std::vector<Blocks::iterator>> by_size;
  std::unordered_map<void*, Block> lent;
  std::atomic<size_t> waiting_bytes = 0;
  std::atomic<size_t> lent_bytes = 0;
  size_t most_waiting_bytes = 0;  // no more may wait, …
  size_t limit_bytes = kNoLimit;  // … nor wait and be lent together

  void wait(Block block, Blocks::iterator before) {
    complete(block);
    auto place = waiting.insert(before, std::move(block));
    by_size[place->size].push_back(place);
    waiting_bytes += place->size;
  }

  Block removed(Blocks::iterator place) {
    Block block = std::move(*place);
    auto found = by_size.find(block.size);
    auto& same = found->second;
    same.erase(std::find(same.begin(), same.end(), place));
    if (same.empty()) by_size.erase(found);
    waiting_bytes -= block.size;
    waiting.erase(place);
    return block;
  }

  // What waited longest, or `most` bytes of it.
  Block oldest(size_t most) {
    Block block = removed(waiting.begin());
    if (block.size <= most) return block;
    Block front = cut(block, most);
    wait(std::move(block), waiting.begin());
    return front;
  }

  // What may not wait when so much more is lent.
  size_t surplus(size_t more_lent = 0) const {
    size_t lent_then = lent_bytes + more_lent;
    size_t may = std::min(most_waiting_bytes, limit_bytes - std::min(limit_bytes, lent_then));
    return waiting_bytes - std::min<size_t>(waiting_bytes, may);
  }

  void give_back(size_t bytes) {
    while (bytes > 0) {
      Block block = oldest(bytes);
      munmap(block.address, block.size);
      bytes -= block.size;
    }
  }

  // A block of this size that waits, or one of pages that may wait no more and of fresh ones.
  Block found(size_t size) {
    auto same = by_size.find(size);
    if (same != by_size.end()) return removed(same->second.back());
    size_t over = limit_bytes == kNoLimit ? surplus(size) : waiting_bytes.load();
    if (over >= size && waiting.front().size >= size) return oldest(size);
    Block block{mapped(size), size, {}, true};
    size_t filled = 0;
    while (block.address != nullptr && filled < size && filled < over) {
      Block part = oldest(std::min(size, over) - filled);
      if (block.pieces.size() + part.pieces.size() >= kMostPieces) {
        munmap(part.address, part.size);
        break;
      }
      if (!moved(part, block.address + filled)) {
        munmap(block.address, size);
        block.address = nullptr;
      }
      filled += part.size;
      block.pieces.insert(block.pieces.end(), part.pieces.begin(), part.pieces.end());
    }
    if (block.address != nullptr && filled < size) {
      block.pieces.push_back(size - filled);
      // under a budget a tensor takes all its pages when it is made, as a plan counts them; they
      // come cheaper together than one by one
      block.whole = limit_bytes != kNoLimit && populated(block.address + filled, size - filled);
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
    b.give_back(b.waiting_bytes);
    found = b.found(size);
  }
  char* address = found.address;
  if (address != nullptr) {
    b.lent.emplace(address, std::move(found));
    b.lent_bytes += size;
    b.give_back(b.surplus());
  }
  return address;
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
      b.lent_bytes -= found->second.size;
      b.wait(std::move(found->second), b.waiting.end());
      b.lent.erase(found);
      b.give_back(b.surplus());
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
  b.give_back(b.surplus());
  return b.waiting_bytes;
}

size_t tensile_pool_waiting() { return books().waiting_bytes; }

size_t tensile_pool_lent() { return books().lent_bytes; }
}
