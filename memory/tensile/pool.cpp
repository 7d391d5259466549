// An allocator for torch's CPU tensors that gives freed memory back, but not too soon.
//
// glibc either keeps large freed blocks for good, or maps and zeroes fresh pages for each tensor.
// Here freed blocks wait for the next tensor of their size while they are no more than `cap` bytes
// in all. Blocks are whole pages, so that they can be read and written round the page cache.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <list>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kSmall = 64 * 1024;  // below it the heap is quicker

struct Block {
  void* address;
  size_t size;
};
using Blocks = std::list<Block>;

struct Books {
  std::mutex mutex;
  Blocks waiting;  // the longest first
  std::unordered_map<size_t, std::vector<Blocks::iterator>> by_size;
  std::unordered_map<void*, size_t> lent;
  size_t waiting_bytes = 0;
  size_t cap_bytes = 0;

  void forget(Blocks::iterator block) {
    auto& same = by_size[block->size];
    same.erase(std::find(same.begin(), same.end(), block));
    waiting_bytes -= block->size;
    waiting.erase(block);
  }

  void shrink(size_t target_bytes) {
    while (waiting_bytes > target_bytes) {
      Block oldest = waiting.front();
      forget(waiting.begin());
      munmap(oldest.address, oldest.size);
    }
  }
};

Books& books() {
  static Books* kept = new Books;  // tensors may die after every static object has
  return *kept;
}

void* mapped(size_t size) {
  void* address = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return address == MAP_FAILED ? nullptr : address;
}

// Asked for room when the system has none; answers whether it is worth to try once more.
using Relief = int (*)(size_t bytes);
std::atomic<Relief> relief{nullptr};

void* block(size_t size) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  void* address = nullptr;
  auto same = b.by_size.find(size);
  if (same != b.by_size.end() && !same->second.empty()) {
    auto found = same->second.back();
    address = found->address;
    b.forget(found);
  } else {
    address = mapped(size);
    if (address == nullptr) {
      b.shrink(0);
      address = mapped(size);
    }
  }
  if (address != nullptr) b.lent[address] = size;
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
      Block block{address, found->second};
      b.lent.erase(found);
      b.waiting.push_back(block);
      b.by_size[block.size].push_back(std::prev(b.waiting.end()));
      b.waiting_bytes += block.size;
      b.shrink(b.cap_bytes);
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

// From here on no more than `bytes` wait. Answers how many do.
size_t tensile_pool_set_cap(size_t bytes) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  b.cap_bytes = bytes;
  b.shrink(bytes);
  return b.waiting_bytes;
}

size_t tensile_pool_waiting() {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  return b.waiting_bytes;
}
}
