// An allocator for torch's CPU tensors that gives freed memory back, but not too soon.
//
// glibc either keeps large freed blocks for good, or maps and zeroes fresh pages for each tensor.
// Here freed blocks, joined with their free neighbours, wait for as long as a limit allows, and the
// smallest that is large enough serves the next tensor. Where none is, the pages of those that
// waited longest move to its address: to move a page takes a hundredth of the time that the system
// needs to take it back and give a zeroed one.
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
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kSmall = 64 * 1024;  // below it the heap is quicker
constexpr size_t kNoLimit = std::numeric_limits<size_t>::max();
constexpr size_t kMostPieces = 8192;  // of all blocks; the system allows 65,530 mappings, of all kinds

// A part of a block that the system can move at once, since it knows it as one mapping.
struct Piece {
  size_t size;
  size_t origin;  // neighbours of one origin are one mapping
};

struct Block {
  char* address;
  size_t size;
  std::vector<Piece> pieces;  // in order
  bool whole;                 // every page is there; of others the system knows

  char* end() const { return address + size; }
};
using Blocks = std::list<Block>;

// The first `size` bytes of a block, which keeps the rest.
Block cut(Block& block, size_t size) {
  Block front{block.address, size, {}, block.whole};
  auto piece = block.pieces.begin();
  for (size_t left = size; left > 0; left -= front.pieces.back().size) {
    front.pieces.push_back({std::min(piece->size, left), piece->origin});
    piece->size -= front.pieces.back().size;
    if (piece->size == 0) ++piece;
  }
  block.pieces.erase(block.pieces.begin(), piece);
  block.address += size;
  block.size -= size;
  return front;
}

// `more` begins where `block` ends. Answers how many pieces became one with another.
size_t append(Block& block, const Block& more) {
  auto next = more.pieces.begin();
  size_t joined = block.pieces.back().origin == next->origin;
  if (joined) block.pieces.back().size += (next++)->size;
  block.pieces.insert(block.pieces.end(), next, more.pieces.end());
  block.size += more.size;
  return joined;
}

// Fresh pages, exactly at `place` if that is given; nullptr where the system has none.
char* mapped(size_t size, char* place = nullptr) {
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | (place == nullptr ? 0 : MAP_FIXED);
  void* address = mmap(place, size, PROT_READ | PROT_WRITE, flags, -1, 0);
  return address == MAP_FAILED ? nullptr : static_cast<char*>(address);
}

// The pages come to `place`; where the system refuses, they are gone, `place` has fresh ones, and the
// block is not whole. False where there are none: then all of them are gone.
bool moved(Block& block, char* place) {
  char* from = block.address;
  for (auto [size, origin] : block.pieces) {
    if (mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, place) == MAP_FAILED) {
      munmap(from, size);
      if (mapped(size, place) == nullptr) {  // what was there may be unmapped
        munmap(from + size, block.end() - from - size);
        return false;
      }
      block.whole = false;
    }
    from += size;
    place += size;
  }
  return true;
}

// How many bytes of a block, from its front, have pages: the system gives one when it is touched.
size_t touched(const Block& block) {
  if (block.whole) return block.size;
  std::vector<unsigned char> there(block.size / kPage);
  if (mincore(block.address, block.size, there.data()) != 0) return 0;
  auto end = std::find_if(there.begin(), there.end(), [](unsigned char page) { return !(page & 1); });
  return (end - there.begin()) * kPage;
}

static_assert(sizeof(std::atomic<size_t>) == sizeof(size_t));

struct Books {
  std::mutex mutex;
  Blocks waiting;  // the longest first; all of them whole
  std::set<std::pair<size_t, char*>> by_size;
  std::map<char*, Blocks::iterator> by_address;
  std::unordered_map<void*, Block> lent;
  std::atomic<size_t> waiting_bytes = 0;
  std::atomic<size_t> lent_bytes = 0;
  size_t most_waiting_bytes = 0;  // no more may wait, …
  size_t limit_bytes = kNoLimit;  // … nor wait and be lent together, …
  size_t crest_bytes = 0;         // … unless so many were lent at once since the limit was set
  size_t pieces = 0;              // of all blocks
  size_t origins = 0;             // so far

  void wait(Block block, Blocks::iterator before) {
    auto place = waiting.insert(before, std::move(block));
    by_size.emplace(place->size, place->address);
    by_address.emplace(place->address, place);
    waiting_bytes += place->size;
  }

  Block removed(Blocks::iterator place) {
    Block block = std::move(*place);
    by_size.erase({block.size, block.address});
    by_address.erase(block.address);
    waiting_bytes -= block.size;
    waiting.erase(place);
    return block;
  }

  // The front of one that waits; the rest waits on in its place.
  Block front(Blocks::iterator place, size_t size) {
    auto next = std::next(place);
    Block block = removed(place);
    if (block.size == size) return block;
    Block front = split(block, size);
    wait(std::move(block), next);
    return front;
  }

  // What waited longest, or `most` bytes of it.
  Block oldest(size_t most) {
    return front(waiting.begin(), std::min(most, waiting.front().size));
  }

  Block split(Block& block, size_t size) {
    size_t before = block.pieces.size();
    Block front = cut(block, size);
    pieces += front.pieces.size() + block.pieces.size() - before;
    return front;
  }

  // A block that is free from now on, with its free neighbours. What nobody touched is no memory
  // that could wait.
  void receive(Block block) {
    size_t there = touched(block);
    if (there < block.size) {
      Block front = split(block, there);
      unmap(block);
      block = std::move(front);
    }
    block.whole = true;
    if (block.size == 0) return;
    auto after = by_address.lower_bound(block.address);
    if (after != by_address.end() && after->first == block.end()) {
      Block next = removed((after++)->second);
      pieces -= append(block, next);
    }
    if (after != by_address.begin()) {
      auto before = std::prev(after)->second;
      if (before->end() == block.address) {
        Block joined = removed(before);
        pieces -= append(joined, block);
        block = std::move(joined);
      }
    }
    wait(std::move(block), waiting.end());
  }

  // What may not wait.
  size_t surplus() const {
    size_t most = std::max(limit_bytes, crest_bytes);
    size_t may = std::min(most_waiting_bytes, most - std::min(most, lent_bytes.load()));
    return waiting_bytes - std::min<size_t>(waiting_bytes, may);
  }

  void unmap(const Block& block) {
    munmap(block.address, block.size);
    pieces -= block.pieces.size();
  }

  void give_back(size_t bytes) {
    while (bytes > 0) {
      Block block = oldest(bytes);
      unmap(block);
      bytes -= block.size;
    }
  }

  // The front of one that waits, or a block of the pages of several and of fresh ones.
  Block found(size_t size) {
    auto large = by_size.lower_bound({size, nullptr});
    if (large != by_size.end()) return front(by_address.at(large->second), size);
    size_t waits = waiting_bytes;
    Block block{mapped(size), size, {}, true};
    size_t filled = 0;
    while (block.address != nullptr && filled < size && filled < waits) {
      Block part = oldest(std::min(size, waits) - filled);
      if (pieces > kMostPieces) {
        unmap(part);
        break;
      }
      if (!moved(part, block.address + filled)) {
        munmap(block.address, size);
        pieces -= block.pieces.size() + part.pieces.size();
        block.address = nullptr;
        break;
      }
      filled += part.size;
      block.whole = block.whole && part.whole;
      for (auto [piece, origin] : part.pieces) block.pieces.push_back({piece, ++origins});
    }
    if (block.address != nullptr && filled < size) {
      block.pieces.push_back({size - filled, ++origins});
      ++pieces;
      block.whole = false;
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
    b.crest_bytes = std::max(b.crest_bytes, b.lent_bytes.load());
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
      b.receive(std::move(found->second));
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

// From here on no more than `waiting` bytes wait, and no more than `limit` do and are lent together.
// Where more are lent at once, as many may wait and be lent until the next call: a step that goes
// up and down there would have the same pages made anew each time. Answers how many wait.
size_t tensile_pool_keep(size_t waiting, size_t limit) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  b.most_waiting_bytes = waiting / kPage * kPage;
  b.limit_bytes = limit / kPage * kPage;
  b.crest_bytes = b.lent_bytes;
  b.give_back(b.surplus());
  return b.waiting_bytes;
}

// Where the counts of waiting and of lent bytes are, for who asks at every moment.
const void* tensile_pool_waiting() { return &books().waiting_bytes; }
const void* tensile_pool_lent() { return &books().lent_bytes; }
}
