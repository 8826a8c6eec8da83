// Codes of runs of columns, and the tables that say what they stand for (see layout.h).
#include <atomic>

#include "repack.h"

namespace trimtab {

void Matrix::lay_out_books(int64_t bits, int64_t books, int64_t entries, int64_t dim, int64_t group, bool scaled) {
  Tiles& t = tiles_;
  t.store = Store::books;
  t.bits = static_cast<int>(bits);
  t.parts = static_cast<int>(books);
  t.entries = entries;
  t.dim = dim;
  t.group = group;
  t.groups = t.in / group;
  t.padded = ceil_to(t.in / dim, granule_of(t.bits));
  t.header_bytes = scaled ? ceil_to(t.groups * kRows * 2, kVector) : 0;
  t.part_bytes = granule_of(t.bits) * 2 * bits;
  t.tile_bytes = t.header_bytes + t.padded / granule_of(t.bits) * books * t.part_bytes;
  allocate_tiles();
  const int64_t bytes = product({books, book_room(t), 4});
  table_ = Buffer(static_cast<std::size_t>(bytes));
  std::memset(table_.data(), 0, static_cast<std::size_t>(bytes));
  t.table = reinterpret_cast<const float*>(table_.data());
}

Matrix Matrix::codebook(Bytes codes, Bytes book, Bytes scale, int64_t out, int64_t in, int64_t books, int64_t entries, int64_t dim,
                        int64_t group) {
  check_shape(out, in);
  check_range("books", books, 1, 64);
  check_range("entries", entries, 2, 256);
  check_range("dim", dim, 1, 1 << 20);
  if (in % dim) refuse("dim " + std::to_string(dim) + " does not divide in=" + std::to_string(in));
  const int64_t groups = groups_of(in, group);
  int bits = 1;
  while (1 << bits < entries) ++bits;
  const int64_t count = in / dim, width = packed_width(count, bits);
  check_size("codes", codes, {books, out, width});
  check_size("codebook", book, {books, entries, dim, 2});
  if (scale.data) check_size("scale", scale, {out, groups, 2});
  if (!scale.data && groups > 1) refuse("groups need scales; without them group_size is in");

  Matrix made;
  Tiles& t = made.tiles_;
  t.out = out;
  t.in = in;
  made.lay_out_books(bits, books, entries, dim, group, scale.data);
  float* const table = reinterpret_cast<float*>(made.table_.data());
  for (int64_t b = 0; b < books; ++b)
    for (int64_t e = 0; e < entries; ++e)
      for (int64_t d = 0; d < dim; ++d) {
        uint16_t half;
        std::memcpy(&half, at(book, ((b * entries + e) * dim + d) * 2), 2);
        table[b * book_room(t) + e * entry_room(t) + d] = from_half(half);
      }
  std::atomic<bool> right{true};
  const int64_t granule = granule_of(bits);
  for_each_row(t, [&](int64_t row, uint8_t* values) {
    uint8_t* const tile = made.memory_.data() + row / kRows * t.tile_bytes;
    for (int64_t g = 0; scale.data && g < groups; ++g)
      std::memcpy(tile + (g * kRows + row % kRows) * 2, at(scale, (row * groups + g) * 2), 2);
    for (int64_t b = 0; b < books; ++b) {
      unpack(at(codes, (b * out + row) * width), width, bits, count, values);
      for (int64_t v = 0; v < count; v += 4) {
        uint32_t four = 0;
        const int64_t left = count - v < 4 ? count - v : 4;
        for (int64_t i = 0; i < left; ++i)
          if (values[v + i] >= entries) right = false;
        std::memcpy(&four, values + v, static_cast<std::size_t>(left));
        place(tile + t.header_bytes + (v / granule * books + b) * t.part_bytes, bits, v % granule / 4, row % kRows, four);
      }
    }
  });
  if (!right) refuse("codes go beyond the " + std::to_string(entries) + " entries of the codebook; the weight is damaged");
  return made;
}

}  // namespace trimtab
