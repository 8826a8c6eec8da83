// Aligned memory that is freed with its owner.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trimtab {

struct Slab;

// `size` bytes, aligned to 64, or to huge pages where it is large: streaming a matrix then misses no TLB. Not initialised.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t size);  // throws std::bad_alloc
  // For what stays and is read again and again: small ones lie in huge pages, too, several in one. Their room is free again when
  // all that were made at about the same time are gone.
  static Buffer lasting(std::size_t size);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  uint8_t* data() const { return data_; }
  std::size_t size() const { return size_; }
  void grow(std::size_t size);  // at least this; what it held is lost

 private:
  uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
  Slab* slab_ = nullptr;  // whose part this is, if of one
};

}  // namespace trimtab
