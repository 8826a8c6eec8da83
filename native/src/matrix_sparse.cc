// Survivors and where they stand, column by column of a tile (see layout.h).
#include <atomic>

#include "repack.h"

namespace trimtab {
namespace {

int64_t bits_set(const uint8_t* row, int64_t columns) {
  int64_t total = 0;
  for (int64_t i = 0; i < columns / 8; ++i) total += __builtin_popcount(row[i]);
  if (columns % 8) total += __builtin_popcount(row[columns / 8] & ((1u << columns % 8) - 1));
  return total;
}

bool survives(const uint8_t* row, int64_t column) { return row[column / 8] >> column % 8 & 1; }

}  // namespace

// rows: where the values of each begin, and where the last of them end.
void Matrix::spread(Bytes values, Bytes bitmap, const std::vector<int64_t>& rows, Store store) {
  Tiles& t = tiles_;
  const int64_t each = check_plain(store), width = packed_width(t.in, 1), masks = ceil_to(t.in * 2, kVector);
  t.store = Store::sparse;
  t.values = store;
  t.tiles = ceil_to(t.out, kRows) / kRows;
  int64_t total = 0;
  for (int64_t tile = 0; tile < t.tiles; ++tile) {
    const int64_t first = tile * kRows, last = first + kRows < t.out ? first + kRows : t.out;
    const int64_t count = rows[static_cast<std::size_t>(last)] - rows[static_cast<std::size_t>(first)];
    const int64_t bytes = masks + ceil_to(count * each, kVector);
    starts_.push_back(total);
    total += bytes;
    t.tile_bytes = bytes > t.tile_bytes ? bytes : t.tile_bytes;
  }
  t.starts = starts_.data();
  allocate(total);
  Pool::shared().run(cores(), t.tiles, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * kRows, count = first + kRows < t.out ? kRows : t.out - first;
      uint8_t *mask_to = memory_.data() + starts_[static_cast<std::size_t>(tile)], *to = mask_to + masks;
      int64_t next[kRows];
      for (int64_t r = 0; r < count; ++r) next[r] = rows[static_cast<std::size_t>(first + r)] * each;
      for (int64_t c = 0; c < t.in; ++c, mask_to += 2) {
        uint32_t mask = 0;
        for (int64_t r = 0; r < count; ++r) {
          if (!survives(at(bitmap, (first + r) * width), c)) continue;
          mask |= 1u << r;
          std::memcpy(to, at(values, next[r]), static_cast<std::size_t>(each));
          to += each;
          next[r] += each;
        }
        const auto bits = static_cast<uint16_t>(mask);
        std::memcpy(mask_to, &bits, 2);
      }
    }
  });
}

Matrix Matrix::masked(Bytes values, Bytes bitmap, Store store, int64_t out, int64_t in) {
  check_shape(out, in);
  const int64_t each = check_plain(store), width = packed_width(in, 1);
  check_size("bitmap", bitmap, {out, width});
  std::vector<int64_t> rows{0};
  for (int64_t r = 0; r < out; ++r) rows.push_back(rows.back() + bits_set(at(bitmap, r * width), in));
  if (values.size != rows.back() * each)
    refuse("the bitmap marks " + std::to_string(rows.back()) + " weights, values has " + std::to_string(values.size) +
           " bytes; the weight is damaged");
  Matrix made;
  made.tiles_.out = out;
  made.tiles_.in = in;
  made.spread(values, bitmap, rows, store);
  return made;
}

Matrix Matrix::some_of(Bytes values, Bytes positions, Store store, int64_t out, int64_t in, int64_t n, int64_t m) {
  check_shape(out, in);
  check_range("m", m, 2, 256);
  check_range("n", n, 1, m - 1);
  if (in % m) refuse("m " + std::to_string(m) + " does not divide in=" + std::to_string(in));
  int bits = 1;
  while (1 << bits < m) ++bits;
  const int64_t each = check_plain(store), count = in / m * n, width = packed_width(count, bits);
  check_size("values", values, {out, count, each});
  check_size("positions", positions, {out, width});

  Matrix made;
  Tiles& t = made.tiles_;
  t.out = out;
  t.in = in;
  t.tiles = ceil_to(out, kRows) / kRows;
  const int64_t marks = packed_width(in, 1);
  std::vector<uint8_t> bitmap(static_cast<std::size_t>(product({out, marks})));
  std::atomic<bool> right{true};
  for_each_row(t, [&](int64_t row, uint8_t* places) {
    unpack(at(positions, row * width), width, bits, count, places);
    uint8_t* const to = bitmap.data() + row * marks;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t column = i / n * m + places[i];
      if (places[i] >= m || (i % n && places[i] <= places[i - 1])) {
        right = false;
        return;
      }
      to[column / 8] = static_cast<uint8_t>(to[column / 8] | 1u << column % 8);
    }
  });
  if (!right) refuse("positions must ascend from 0 to at most " + std::to_string(m - 1) + " in every group; the weight is damaged");
  std::vector<int64_t> rows;
  for (int64_t r = 0; r <= out; ++r) rows.push_back(r * count);
  made.spread(values, {bitmap.data(), static_cast<int64_t>(bitmap.size())}, rows, store);
  return made;
}

}  // namespace trimtab
