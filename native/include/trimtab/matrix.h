// A weight matrix, taken from the tensors of a file and repacked into the kernel layout.
//
// Whoever hands in these tensors may have read them from a damaged file: every size is compared with what the numbers next to
// it demand before the first byte is read. What does not fit is a std::invalid_argument that says which tensor and why.
#pragma once

#include <vector>

#include "trimtab/buffer.h"
#include "trimtab/layout.h"

namespace trimtab {

// Bytes and how many. Scales are float16 in little-endian order and need not be aligned.
struct Bytes {
  const void* data = nullptr;
  int64_t size = 0;
};

class Matrix {
 public:
  // w = (code - zero) * scale. codes: rows of ceil(in * bits / 8) bytes, a little-endian bit stream; scale: float16
  // [out, groups]; zero: like codes, groups of them per row, or no data: 2^(bits - 1) everywhere. bits: 2 to 8.
  static Matrix grouped(Bytes codes, Bytes scale, Bytes zero, int64_t out, int64_t in, int64_t bits, int64_t group);

  // w = offset + sum_j scale_j * plane_j. planes: [planes][out] rows of ceil(in / 8) bytes; scale: float16
  // [out, groups, planes]; offset: float16 [out, groups]. planes: 1 to 8.
  static Matrix bitplanes(Bytes planes, Bytes scale, Bytes offset, int64_t out, int64_t in, int64_t count, int64_t group);

  // weight: [out, in] of this type.
  static Matrix dense(Bytes weight, Store store, int64_t out, int64_t in);

  // The same type rounded to `bits` per weight, in groups of `group` inputs: w ~ (code - 2^(bits - 1)) * scale, where the entry
  // that is largest in magnitude is met exactly but for the scale's own rounding. Weights must be finite.
  static Matrix rounded(Bytes weight, Store store, int64_t out, int64_t in, int64_t bits, int64_t group);

  // The same type rounded to the nearest bfloat16, ties to even. Weights must be finite, and remain so.
  static Matrix bfloats(Bytes weight, Store store, int64_t out, int64_t in);

  // A value for every bit that is set in bitmap: [out] rows of ceil(in / 8) bytes. values: of this type, row by row.
  static Matrix masked(Bytes values, Bytes bitmap, Store store, int64_t out, int64_t in);

  // n values in every m columns. values: [out, in / m * n]; positions: like codes of as few bits as hold m - 1, ascending in
  // every group.
  static Matrix some_of(Bytes values, Bytes positions, Store store, int64_t out, int64_t in, int64_t n, int64_t m);

  // w of columns v * dim to v * dim + dim - 1 = (sum_b book[b][codes[b][v]]) * scale, summed and scaled in float32. codes:
  // [books][out] rows of in / dim codes, of as few bits as hold entries - 1; book: float16 [books, entries, dim]; scale: float16
  // [out, in / group], or no data, and then group is `in`. books: 1 to 64; entries: 2 to 256.
  static Matrix codebook(Bytes codes, Bytes book, Bytes scale, int64_t out, int64_t in, int64_t books, int64_t entries,
                         int64_t dim, int64_t group);

  const Tiles& tiles() const { return tiles_; }
  int64_t bytes() const { return bytes_; }  // that one product reads

 private:
  Matrix() = default;
  void lay_out_codes(int64_t bits, int64_t parts, Offset offset, int64_t group);
  void lay_out_plain(Store store);
  void lay_out_books(int64_t bits, int64_t books, int64_t entries, int64_t dim, int64_t group, bool scaled);
  void spread(Bytes values, Bytes bitmap, const std::vector<int64_t>& rows, Store store);
  void allocate(int64_t bytes);
  void allocate_tiles();

  Tiles tiles_{};
  int64_t bytes_ = 0;
  Buffer memory_, table_;
  std::vector<int64_t> starts_;
};

}  // namespace trimtab
