// What all ways to take in a weight share: comparing sizes, reading bit streams, and where a code goes.
#pragma once

#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "trimtab/matrix.h"
#include "trimtab/pool.h"

namespace trimtab {

constexpr int64_t kLargest = int64_t{1} << 31;  // per dimension: beyond any matrix that exists

[[noreturn]] inline void refuse(const std::string& what) { throw std::invalid_argument(what); }

inline void check_range(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high)
    refuse(std::string(name) + " must be from " + std::to_string(low) + " to " + std::to_string(high) + ", got " +
           std::to_string(value));
}

inline void check_shape(int64_t out, int64_t in) {
  check_range("out", out, 1, kLargest);
  check_range("in", in, 1, kLargest);
}

inline int64_t groups_of(int64_t in, int64_t group) {
  check_range("group_size", group, 1, kLargest);
  if (in % group) refuse("group_size " + std::to_string(group) + " does not divide in=" + std::to_string(in));
  return in / group;
}

// The product must fit: dimensions that come from a damaged file may be anything.
inline int64_t product(std::initializer_list<int64_t> factors) {
  int64_t total = 1;
  for (const int64_t factor : factors)
    if (__builtin_mul_overflow(total, factor, &total)) refuse("the sizes are larger than any memory; the weight is damaged");
  return total;
}

inline void check_size(const char* name, Bytes given, std::initializer_list<int64_t> factors) {
  const int64_t expected = product(factors);
  if (given.size == expected && given.data) return;
  refuse(std::string(name) + " has " + std::to_string(given.size) + " bytes, its sizes need " + std::to_string(expected) +
         "; the weight is damaged");
}

// Bytes of one entry of a plain type.
inline int64_t check_plain(Store store) {
  if (store != Store::float32 && store != Store::float16 && store != Store::bfloat16)
    refuse("weights are float32, float16 or bfloat16");
  return store == Store::float32 ? 4 : 2;
}

inline const uint8_t* at(Bytes bytes, int64_t index) { return static_cast<const uint8_t*>(bytes.data) + index; }

inline int64_t packed_width(int64_t n, int64_t bits) { return (n * bits + 7) / 8; }

// A row of a little-endian bit stream, one code per byte.
inline void unpack(const uint8_t* row, int64_t bytes, int bits, int64_t n, uint8_t* codes) {
  const uint32_t mask = (1u << bits) - 1;
  uint64_t window = 0;
  int held = 0;
  int64_t at = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (held < bits) {
      for (; held <= 56 && at < bytes; held += 8) window |= uint64_t{row[at++]} << held;
    }
    codes[i] = static_cast<uint8_t>(window & mask);
    window >>= bits;
    held -= bits;
  }
}

// Puts quad number `quad` (4 columns of one row, a byte each) into the vectors of its granule. fields.inc is the reverse.
inline void place(uint8_t* granule, int bits, int64_t quad, int64_t row, uint32_t codes) {
  // `width` bits from bit `from` of every code to bit `to` of the bytes of a vector.
  auto put = [&](int64_t vector, int width, int from, int64_t to) {
    uint32_t word;
    uint8_t* const at = granule + vector * kVector + row * 4;
    std::memcpy(&word, at, 4);
    word |= ((codes >> from) & (((1u << width) - 1) * 0x01010101u)) << to;
    std::memcpy(at, &word, 4);
  };
  if (bits == 8) return put(quad, 8, 0, 0);
  if (bits == 3 && quad < 6) return put(quad / 2, 3, 0, quad % 2 * 3);
  if (bits == 3) {
    put((quad - 6) * 2, 2, 0, 6);
    return put(1, 1, 2, quad);
  }
  const int64_t quads = granule_of(bits) / 4;
  int64_t first = 0;
  int from = 0;
  for (int width = 4; width; width /= 2) {
    if (!(bits & width)) continue;
    const int64_t each = 8 / width;  // quads per vector
    put(first + quad / each, width, from, quad % each * width);
    first += quads / each;
    from += width;
  }
}

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float number(uint32_t bits) {
  float made;
  std::memcpy(&made, &bits, 4);
  return made;
}

inline float from_half(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, size = half & 0x7fffu;
  if (size < 0x400u) return number(sign | bits_of(static_cast<float>(size) * 0x1p-24f));
  return number(sign | (size >= 0x7c00u ? size << 13 | 0x7f800000u : (size << 13) + 0x38000000u));
}

// work(row, values) for all rows; values: room for a row of unpacked codes.
template <class Work>
inline void for_each_row(const Tiles& tiles, Work&& work) {
  const int threads = cores();
  std::vector<uint8_t> memory(static_cast<std::size_t>(tiles.in * threads));
  Pool::shared().run(threads, tiles.tiles, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t row = begin * kRows; row < end * kRows && row < tiles.out; ++row) work(row, memory.data() + worker * tiles.in);
  });
}

}  // namespace trimtab
