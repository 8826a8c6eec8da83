#include "trimtab/matrix.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>

#include "repack.h"

namespace trimtab {
namespace {

// To the nearest; beyond the range, to its end.
uint16_t to_half(float x) {
  const uint32_t sign = bits_of(x) >> 16 & 0x8000u, size = bits_of(x) & 0x7fffffffu;
  if (size < 0x38800000u) return static_cast<uint16_t>(sign);
  const uint32_t rounded = (size + 0xfffu + (size >> 13 & 1u) - 0x38000000u) >> 13;
  return static_cast<uint16_t>(sign | std::min(rounded, 0x7bffu));
}

float stored(const uint8_t* from, int64_t index, Store store) {
  if (store == Store::float32) {
    uint32_t word;
    std::memcpy(&word, from + 4 * index, 4);
    return number(word);
  }
  uint16_t half;
  std::memcpy(&half, from + 2 * index, 2);
  return store == Store::bfloat16 ? number(uint32_t{half} << 16) : from_half(half);
}

// Whether every plane counts exactly twice as much as the one before it, in all groups: then they are the bits of one code.
bool doubling(const uint8_t* scale, int64_t row_groups, int64_t count) {
  for (int64_t i = 0; i < row_groups; ++i) {
    for (int64_t j = 0; j < count; ++j) {
      uint16_t first, half;
      std::memcpy(&first, scale + i * count * 2, 2);
      std::memcpy(&half, scale + (i * count + j) * 2, 2);
      const int size = first & 0x7fff, power = static_cast<int>(j) << 10;
      if (size == 0 ? half != first : size < 0x400 || size + power >= 0x7c00 || half != first + power) return false;
    }
  }
  return true;
}

struct Repack {
  const Tiles& tiles;
  uint8_t* data;

  uint8_t* header(int64_t tile, int64_t group) const {
    return data + tile * tiles.tile_bytes + group / tiles.super * tiles.header_bytes + group * tiles.parts * tiles.part_bytes -
           group % tiles.super * tiles.parts * tiles.part_bytes;
  }
  uint8_t* codes(int64_t tile, int64_t group, int64_t part) const {
    return header(tile, group) + tiles.header_bytes + (group % tiles.super * tiles.parts + part) * tiles.part_bytes;
  }
  uint8_t* scale(int64_t row, int64_t group, int64_t part) const {
    return header(row / kRows, group) + ((part * tiles.super + group % tiles.super) * kRows + row % kRows) * 2;
  }
  uint8_t* offset(int64_t row, int64_t group, int64_t size) const {
    return header(row / kRows, group) + tiles.parts * tiles.super * kRows * 2 +
           (group % tiles.super * kRows + row % kRows) * size;
  }

  uint8_t* plain(int64_t row, int64_t column) const {
    uint8_t* const tile = data + row / kRows * tiles.tile_bytes;
    const int64_t r = row % kRows;
    if (tiles.store == Store::bfloat16) return tile + column / 2 * kVector + r * 4 + column % 2 * 2;
    return tile + (column * kRows + r) * (tiles.store == Store::float32 ? 4 : 2);
  }

  // One row of one part: codes [in].
  void row(int64_t row, int64_t part, const uint8_t* values) const {
    const int64_t granule = granule_of(tiles.bits), bytes = granule * 2 * tiles.bits;
    for (int64_t g = 0; g < tiles.groups; ++g, values += tiles.group) {
      uint8_t* const to = codes(row / kRows, g, part);
      for (int64_t c = 0; c < tiles.group; c += 4) {
        uint32_t four = 0;
        const int64_t left = tiles.group - c;
        std::memcpy(&four, values + c, left < 4 ? static_cast<std::size_t>(left) : 4);
        place(to + c / granule * bytes, tiles.bits, c % granule / 4, row % kRows, four);
      }
    }
  }
};

}  // namespace

// Room for these bytes and for a vector that begins among the last of them, all zeros.
void Matrix::allocate(int64_t bytes) {
  memory_ = Buffer::lasting(static_cast<std::size_t>(bytes + kVector));
  std::memset(memory_.data(), 0, static_cast<std::size_t>(bytes + kVector));
  tiles_.data = memory_.data();
  bytes_ = bytes;
}

void Matrix::allocate_tiles() {
  tiles_.tiles = ceil_to(tiles_.out, kRows) / kRows;
  if (tiles_.tile_bytes > std::numeric_limits<int64_t>::max() / 2 / tiles_.tiles) throw std::bad_alloc();
  allocate(tiles_.tiles * tiles_.tile_bytes);
}

void Matrix::lay_out_codes(int64_t bits, int64_t parts, Offset offset, int64_t group) {
  Tiles& t = tiles_;
  t.store = Store::codes;
  t.offset = offset;
  t.bits = static_cast<int>(bits);
  t.parts = static_cast<int>(parts);
  t.group = group;
  t.groups = t.in / group;
  t.padded = ceil_to(group, granule_of(t.bits));
  t.super = t.groups < kSuper ? t.groups : kSuper;  // so with more groups than kSuper, always kSuper
  const int64_t added = offset == Offset::middle ? 0 : offset == Offset::zero ? 1 : 2;
  t.header_bytes = ceil_to(t.super * kRows * (2 * parts + added), kVector);
  t.part_bytes = t.padded * 2 * bits;
  t.tile_bytes = ceil_to(t.groups, t.super) / t.super * t.header_bytes + t.groups * parts * t.part_bytes;
  allocate_tiles();
}

Matrix Matrix::grouped(Bytes codes, Bytes scale, Bytes zero, int64_t out, int64_t in, int64_t bits, int64_t group) {
  check_shape(out, in);
  check_range("bits", bits, 2, 8);
  const int64_t groups = groups_of(in, group), width = packed_width(in, bits), zeros = packed_width(groups, bits);
  check_size("codes", codes, {out, width});
  check_size("scale", scale, {out, groups, 2});
  if (zero.data) check_size("zero", zero, {out, zeros});

  Matrix made;
  made.tiles_.out = out;
  made.tiles_.in = in;
  made.lay_out_codes(bits, 1, zero.data ? Offset::zero : Offset::middle, group);
  const Repack to{made.tiles_, made.memory_.data()};
  for_each_row(made.tiles_, [&](int64_t row, uint8_t* values) {
    unpack(at(codes, row * width), width, static_cast<int>(bits), in, values);
    to.row(row, 0, values);
    if (zero.data) unpack(at(zero, row * zeros), zeros, static_cast<int>(bits), groups, values);
    for (int64_t g = 0; g < groups; ++g) {
      std::memcpy(to.scale(row, g, 0), at(scale, (row * groups + g) * 2), 2);
      if (zero.data) *to.offset(row, g, 1) = values[g];
    }
  });
  return made;
}

Matrix Matrix::rounded(Bytes weight, Store store, int64_t out, int64_t in, int64_t bits, int64_t group) {
  check_shape(out, in);
  check_range("bits", bits, 2, 8);
  const int64_t groups = groups_of(in, group), each = check_plain(store);
  check_size("weight", weight, {out, in, each});

  Matrix made;
  made.tiles_.out = out;
  made.tiles_.in = in;
  made.lay_out_codes(bits, 1, Offset::middle, group);
  const Repack to{made.tiles_, made.memory_.data()};
  const float middle = static_cast<float>(1 << (bits - 1));
  std::atomic<bool> finite{true};
  for_each_row(made.tiles_, [&](int64_t row, uint8_t* values) {
    for (int64_t g = 0; g < groups; ++g) {
      const uint8_t* const from = at(weight, (row * in + g * group) * each);
      float extreme = 0;
      for (int64_t c = 0; c < group; ++c) {
        const float w = stored(from, c, store);
        if (!(std::fabs(w) <= 3e38f)) finite = false;
        if (std::fabs(w) > std::fabs(extreme)) extreme = w;
      }
      const uint16_t half = to_half(-extreme / middle);
      std::memcpy(to.scale(row, g, 0), &half, 2);
      const float scale = from_half(half), inverse = scale == 0 ? 0 : 1 / scale;
      for (int64_t c = 0; c < group; ++c) {
        const float code = std::nearbyint(stored(from, c, store) * inverse) + middle;
        values[g * group + c] = static_cast<uint8_t>(code >= 0 ? std::min(code, 2 * middle - 1) : 0);
      }
    }
    to.row(row, 0, values);
  });
  if (!finite) refuse("weight has values that are not finite numbers");
  return made;
}

Matrix Matrix::bitplanes(Bytes planes, Bytes scale, Bytes offset, int64_t out, int64_t in, int64_t count, int64_t group) {
  check_shape(out, in);
  check_range("planes", count, 1, kMostParts);
  const int64_t groups = groups_of(in, group), width = packed_width(in, 1);
  check_size("planes", planes, {count, out, width});
  check_size("scale", scale, {out, groups, count, 2});
  check_size("offset", offset, {out, groups, 2});

  Matrix made;
  made.tiles_.out = out;
  made.tiles_.in = in;
  const bool whole = count > 1 && doubling(at(scale, 0), out * groups, count);
  whole ? made.lay_out_codes(count, 1, Offset::free, group) : made.lay_out_codes(1, count, Offset::free, group);
  const Repack to{made.tiles_, made.memory_.data()};
  for_each_row(made.tiles_, [&](int64_t row, uint8_t* values) {
    std::vector<uint8_t> codes(static_cast<std::size_t>(whole ? in : 0));
    for (int64_t j = 0; j < count; ++j) {
      unpack(at(planes, (j * out + row) * width), width, 1, in, values);
      for (std::size_t c = 0; c < codes.size(); ++c) codes[c] = static_cast<uint8_t>(codes[c] | values[c] << j);
      if (!whole) to.row(row, j, values);
      if (whole && j) continue;
      for (int64_t g = 0; g < groups; ++g) std::memcpy(to.scale(row, g, j), at(scale, ((row * groups + g) * count + j) * 2), 2);
    }
    if (whole) to.row(row, 0, codes.data());
    for (int64_t g = 0; g < groups; ++g) std::memcpy(to.offset(row, g, 2), at(offset, (row * groups + g) * 2), 2);
  });
  return made;
}

void Matrix::lay_out_plain(Store store) {
  Tiles& t = tiles_;
  t.store = store;
  t.tile_bytes = ceil_to(ceil_to(t.in, store == Store::bfloat16 ? 2 : 1) * kRows * (store == Store::float32 ? 4 : 2), kVector);
  allocate_tiles();
}

Matrix Matrix::dense(Bytes weight, Store store, int64_t out, int64_t in) {
  check_shape(out, in);
  const int64_t each = check_plain(store);
  check_size("weight", weight, {out, in, each});

  Matrix made;
  made.tiles_.out = out;
  made.tiles_.in = in;
  made.lay_out_plain(store);
  const Repack to{made.tiles_, made.memory_.data()};
  for_each_row(made.tiles_, [&](int64_t row, uint8_t*) {
    const uint8_t* const from = at(weight, row * in * each);
    for (int64_t c = 0; c < in; ++c) std::memcpy(to.plain(row, c), from + c * each, static_cast<std::size_t>(each));
  });
  return made;
}

Matrix Matrix::bfloats(Bytes weight, Store store, int64_t out, int64_t in) {
  check_shape(out, in);
  check_size("weight", weight, {out, in, check_plain(store)});

  Matrix made;
  made.tiles_.out = out;
  made.tiles_.in = in;
  made.lay_out_plain(Store::bfloat16);
  const Repack to{made.tiles_, made.memory_.data()};
  std::atomic<bool> finite{true};
  for_each_row(made.tiles_, [&](int64_t row, uint8_t*) {
    for (int64_t c = 0; c < in; ++c) {
      const uint32_t bits = bits_of(stored(static_cast<const uint8_t*>(weight.data), row * in + c, store));
      const auto rounded = static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
      if ((rounded & 0x7f80u) == 0x7f80u || (bits & 0x7f800000u) == 0x7f800000u) finite = false;
      std::memcpy(to.plain(row, c), &rounded, 2);
    }
  });
  if (!finite) refuse("weight has values that are not finite numbers, or beyond what bfloat16 holds");
  return made;
}

}  // namespace trimtab
