#include "trimtab/buffer.h"

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace trimtab {
namespace {

constexpr std::size_t kHuge = std::size_t{2} << 20;
constexpr std::size_t kAlign = 64;
constexpr std::size_t kSlab = 16 * kHuge;

uint8_t* taken(std::size_t unit, std::size_t size) {
  auto* const data = static_cast<uint8_t*>(std::aligned_alloc(unit, size));
  if (!data) throw std::bad_alloc();
#if defined(__linux__)
  if (unit == kHuge) madvise(data, size, MADV_HUGEPAGE);  // a hint: refusal costs speed only
#endif
  return data;
}

}  // namespace

// Memory that several buffers have parts of. It goes with the last of them, and is taken from front to back only.
struct Slab {
  uint8_t* data;
  std::size_t used = 0;
  std::atomic<int> users{1};  // the first is whoever fills it

  static uint8_t* part(std::size_t size, Slab*& from) {
    static std::mutex filling;
    static Slab* now = nullptr;
    const std::lock_guard<std::mutex> lock(filling);
    if (now && now->users.load() == 1) now->used = 0;
    if (!now || kSlab - now->used < size) {
      Slab* const next = new Slab{taken(kHuge, kSlab)};
      if (now) now->leave();
      now = next;
    }
    uint8_t* const data = now->data + now->used;
    now->used += size;
    now->users.fetch_add(1);
    from = now;
    return data;
  }

  void leave() {
    if (users.fetch_sub(1) != 1) return;
    std::free(data);
    delete this;
  }
};

Buffer::Buffer(std::size_t size) {
  const std::size_t unit = size >= 2 * kHuge ? kHuge : kAlign;
  if (size > SIZE_MAX - unit) throw std::bad_alloc();
  size_ = (size / unit + 1) * unit;  // never 0 bytes
  data_ = taken(unit, size_);
}

Buffer Buffer::lasting(std::size_t size) {
#if !defined(TRIMTAB_SANITIZED)  // which would not see where one buffer of a slab ends and the next begins
  if (size <= kSlab / 4) {
    Buffer made;
    made.size_ = (size / kAlign + 1) * kAlign;
    made.data_ = Slab::part(made.size_, made.slab_);
    return made;
  }
#endif
  return Buffer(size);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      slab_(std::exchange(other.slab_, nullptr)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(slab_, other.slab_);
  return *this;
}

Buffer::~Buffer() {
  if (slab_)
    slab_->leave();
  else
    std::free(data_);
}

void Buffer::grow(std::size_t size) {
  if (size > size_) *this = Buffer(size + size / 2);
}

}  // namespace trimtab
