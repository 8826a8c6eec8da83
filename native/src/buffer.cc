#include "trimtab/buffer.h"

#include <cstdlib>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace trimtab {
namespace {

constexpr std::size_t kHuge = std::size_t{2} << 20;

}  // namespace

Buffer::Buffer(std::size_t size) {
  const std::size_t unit = size >= 2 * kHuge ? kHuge : 64;
  if (size > SIZE_MAX - unit) throw std::bad_alloc();
  size_ = (size / unit + 1) * unit;  // never 0 bytes
  data_ = static_cast<uint8_t*>(std::aligned_alloc(unit, size_));
  if (!data_) throw std::bad_alloc();
#if defined(__linux__)
  if (unit == kHuge) madvise(data_, size_, MADV_HUGEPAGE);  // a hint: refusal costs speed only
#endif
}

Buffer::Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Buffer::~Buffer() { std::free(data_); }

void Buffer::grow(std::size_t size) {
  if (size > size_) *this = Buffer(size + size / 2);
}

}  // namespace trimtab
