// Aligned memory that is freed with its owner.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trimtab {

// `size` bytes, aligned to 64, or to huge pages where it is large: streaming a matrix then misses no TLB. Not initialised.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t size);  // throws std::bad_alloc
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  uint8_t* data() const { return data_; }
  std::size_t size() const { return size_; }
  void grow(std::size_t size);  // at least this; what it held is lost

 private:
  uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace trimtab
