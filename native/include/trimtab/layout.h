// The kernel layout: how a packed matrix lies in memory while it is multiplied.
//
// Files store rows one after the other, the same on every machine. A kernel wants something else: one pass over memory from
// front to back, no horizontal sums, no shuffles. So a matrix is repacked once, when it is first used, into tiles of 16 rows:
//
//   vector   64 bytes, 16 rows x 4 columns: byte 4 * row + column. Multiplied with 4 activations broadcast to all rows, it
//            adds to 16 sums, one per row (VPDPBUSD on one 512-bit register, two halves on AVX2, plain loops elsewhere).
//   fields   codes of fewer than 8 bits share a byte: the vector then holds several quads of columns, one per bit field.
//            4-bit fields: 2 quads, 2-bit fields: 4, 1-bit fields: 8. Other widths are composed: 5 = 4 + 1, 7 = 4 + 2 + 1;
//            of 3 bits there are 2 quads in a vector, and 2 more in the 2 bits that 3 vectors have left.
//   granule  the fewest columns that are whole in all fields: 32 for odd widths, otherwise 16. Groups are padded to granules;
//            the activations there are zero, so what the padding codes say does not count.
//   part     the codes of one group: all of it for integers; one bit plane for sums of scaled binaries. Planes each of which
//            counts twice as much as the one before it become integers.
//   super    up to 4 groups. Their scales and offsets stand in a header in front of their codes, so that everything is read
//            in one forward stream and every vector is aligned.
//
// Plain matrices lie in the same tiles, column by column; bfloat16 in pairs of columns, byte 4 * row + 2 * column of a vector.
//
// Sparse matrices: a tile has 16 bits for every column, bit r for row r, and then the values that there are, column by column
// and in a column row by row. Tiles are of different sizes.
//
// Codebooks: what stands in granules are codes of runs of `dim` columns; the codes of all books for one granule follow each other.
// In front of the codes of a tile are its scales, float16 [group][row], if there are any.
//
// Everything below is plain data without member functions: files compiled for different instruction sets share it, and an
// inline function compiled for the wrong one must not be what the linker keeps.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trimtab {

constexpr int64_t kRows = 16;    // rows of a tile
constexpr int64_t kVector = 64;  // bytes
constexpr int64_t kBlock = 64;   // activations that share a scale, at most
constexpr int64_t kSuper = 4;    // groups that share a header, at most
constexpr int64_t kStrip = 256;  // columns that are unpacked to floats at a time
constexpr int64_t kSheaf = 6;    // tiles that are unpacked together where there are many tokens
constexpr int64_t kPanel = 256;  // columns of them, about: what stays in the first cache
constexpr int64_t kFlock = 256;  // tokens that pass while they are unpacked
constexpr int64_t kWidestBundle = 8;  // tokens that a kernel multiplies at once, at most
constexpr int kMostParts = 8;

enum class Store : int { codes, float32, float16, bfloat16, sparse, books };

// What is added to scale * code: nothing but -middle * scale; a stored zero point, -zero * scale; or a free offset.
enum class Offset : int { middle, zero, free };

// A matrix as kernels see it.
struct Tiles {
  const uint8_t* data;
  Store store;
  int64_t out, in;
  int64_t tiles;
  int64_t tile_bytes;
  // Of sparse matrices:
  Store values;
  const int64_t* starts;  // of the tiles in `data`; tile_bytes is what the largest takes
  // Of codebooks, whose `parts` are the books; `header_bytes` are 0 without scales:
  int64_t dim, entries;
  const float* table;  // [book][room for entries][room for an entry]
  // The rest is for codes, bits and groups for codebooks as well.
  Offset offset;
  int bits;        // of a code: 1 for bit planes, 2 to 8 for integers; these, too, may have come as planes
  int parts;       // 1, or the number of bit planes
  int64_t group;   // columns of a group
  int64_t padded;  // the same, filled up to granules
  int64_t groups;
  int64_t super;         // groups of one header
  int64_t header_bytes;  // scales as float16 [part][group of super][row], then offsets: uint8 or float16 [group of super][row]
  int64_t part_bytes;    // codes of one part of one group
};

// Activations of several tokens as integers with a scale per block: x ~ scale * q, and q in one or two signed bytes.
// One byte: q in +-127. Two: q = 128 * high + low in +-16319; every operation on a byte is then exact in all instruction sets.
//
// For a bfloat16 matrix there is only q: bfloat16 [bundle][pair of columns][token][2], the last bundle filled up with zeros.
//
// Tokens are taken in bundles of as many as a kernel multiplies at once, and lie so that it reads them with one pointer: every
// array is [bundle][...][token of the bundle]. Bundles are full, then halves of halves for the tokens that remain; since all
// tokens take the same room, a bundle begins where as many tokens as come before it end.
struct Batch {
  int64_t tokens;
  int digits;                // bytes per activation: 1 or 2
  int64_t width;             // groups * padded
  int64_t blocks;            // per group
  const int8_t* q;           // [bundle][quad][digit][token][4 columns], high digit first
  const float* scale;        // [bundle][group * blocks + block][token]; NaN where an activation is not finite
  const int32_t* block_sum;  // [bundle][group * blocks + block][token], sum of q
  const float* group_sum;    // [bundle][group][token], sum of scale * q
  // Of one token, for bit planes, where kernels look sums up; otherwise null. A byte of a plane at column `j` of its quad holds 4
  // quads in 4 bits: what these add up to is in 16 numbers, less `half` of what all 4 add up to, so that 16 bits are enough.
  const uint8_t* tables;      // [16 columns][low and high byte][j][bits]
  const int32_t* block_half;  // [group * blocks + block], sum of the halves
};

static constexpr int64_t granule_of(int bits) { return bits & 1 ? 32 : 16; }
// Of a panel: whole groups, and at least one.
static constexpr int64_t panel_groups(const Tiles& m) {
  return m.parts * m.padded >= kPanel ? 1 : kPanel / (m.parts * m.padded);
}
static constexpr int64_t ceil_to(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// In the table of a codebook: entries of single numbers are looked up 16 at once, others are loaded 4 numbers at a time.
static constexpr int64_t entry_room(const Tiles& m) { return m.dim == 1 ? 1 : ceil_to(m.dim, 4); }
static constexpr int64_t book_room(const Tiles& m) { return ceil_to(m.entries, kRows) * entry_room(m); }
// Codes of a book that are unpacked at a time: granules that together have about a strip of columns, and at least one.
static constexpr int64_t codes_at_once(const Tiles& m) {
  const int64_t granule = granule_of(m.bits), columns = granule * m.dim;
  return columns >= kStrip ? granule : kStrip / columns * granule;
}

}  // namespace trimtab
