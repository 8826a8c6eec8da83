// One 512-bit register for 16 rows. Needs F, BW, VL, DQ and VNNI.

namespace {

constexpr int64_t kPrefetch = 8192;  // beyond a page of memory, where the processor's own guess ends
constexpr int kTokens = 8, kExactTokens = 8, kTall = 3, kAtOnce = 4;
constexpr bool kTallDots = true;
constexpr bool kInPlace = true;
constexpr bool kLooksUp = true;  // where there are tables: linear.cc makes them if the processor has VBMI

struct Codes {
  __m512i v;
};
struct Ints {
  __m512i v;
};
struct Floats {
  __m512 v;
};

inline Codes load_codes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_codes(uint8_t* p, Codes a) { _mm512_storeu_si512(p, a.v); }

// Bits [From, From + Width) of every byte, moved to bit To. What a shift of 16 bits brings from the neighbour is masked out.
template <int Width, int From, int To>
inline Codes field(Codes a) {
  constexpr int kShift = From - To;
  if constexpr (kShift > 0) a.v = _mm512_srli_epi16(a.v, kShift);
  if constexpr (kShift < 0) a.v = _mm512_slli_epi16(a.v, -kShift);
  return {_mm512_and_si512(a.v, _mm512_set1_epi8(static_cast<char>(((1 << Width) - 1) << To)))};
}
inline Codes either(Codes a, Codes b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int C>
inline Floats column(Codes a) {
  return {_mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(a.v, 8 * C), _mm512_set1_epi32(255)))};
}

inline Ints splat_int(int32_t a) { return {_mm512_set1_epi32(a)}; }
inline Ints operator+(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Ints times_128(Ints a) { return {_mm512_slli_epi32(a.v, 7)}; }
template <int Shift>
inline Ints shifted_down(Ints a) {
  if constexpr (Shift == 0) return a;
  return {_mm512_srai_epi32(a.v, Shift)};
}
inline Floats to_floats(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }

inline Floats splat(float a) { return {_mm512_set1_ps(a)}; }
inline Floats zeros() { return {_mm512_setzero_ps()}; }
inline Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Floats a) { _mm512_storeu_ps(p, a.v); }
inline Floats add(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Floats sub(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Floats mul(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// b where one of the two is NaN.
inline Floats larger(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
// 2^n from n + 1.5 * 2^23, for whole n from -126 to 127.
inline Floats power_of_two(Floats shifted) {
  const __m512i bias = _mm512_set1_epi32(127 - 0x4b400000);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_castps_si512(shifted.v), bias), 23))};
}
inline Floats negated(Floats a) { return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))}; }
inline Floats from_bytes(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline Floats from_bfloats(const uint8_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
// Two columns: 16 rows x 2 bfloat16.
inline void from_bfloat_pairs(const uint8_t* p, Floats& first, Floats& second) {
  const __m512i pairs = _mm512_loadu_si512(p);
  first.v = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
  second.v = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000))));
}
inline Floats from_halves(const uint8_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }

// The next values at p, one for every row in `mask`; the other rows are 0.
template <Store S>
inline Floats spread(const uint8_t* p, uint32_t mask) {
  Floats next;
  if constexpr (S == Store::float32) next = load(reinterpret_cast<const float*>(p));
  if constexpr (S == Store::float16) next = from_halves(p);
  if constexpr (S == Store::bfloat16) next = from_bfloats(p);
  return {_mm512_maskz_expand_ps(static_cast<__mmask16>(mask), next.v)};
}

// Byte C of every row's 4.
template <int C>
inline Ints code_at(const uint8_t* p) {
  return {_mm512_and_si512(_mm512_srli_epi32(_mm512_loadu_si512(p), 8 * C), _mm512_set1_epi32(255))};
}
inline Ints times(Ints a, int32_t factor) { return {_mm512_mullo_epi32(a.v, _mm512_set1_epi32(factor))}; }
inline void store_ints(int32_t* p, Ints a) { _mm512_storeu_si512(p, a.v); }
inline Floats gathered(const float* table, Ints index) { return {_mm512_i32gather_ps(index.v, table, 4)}; }
inline Floats of_16(const float* table, Ints index) { return {_mm512_permutexvar_ps(index.v, _mm512_loadu_ps(table))}; }

// 4 numbers of one row.
struct Four {
  __m128 v;
};
inline Four load_four(const float* p) { return {_mm_loadu_ps(p)}; }
inline Four add_four(Four a, Four b) { return {_mm_add_ps(a.v, b.v)}; }
// Rows i, 4 + i, 8 + i and 12 + i in a register, then 4 x 4 turned in every quarter.
inline void turn(const Four* rows, Floats* columns) {
  __m512 r[4];
  for (int i = 0; i < 4; ++i) {
    const __m256 low = _mm256_insertf128_ps(_mm256_castps128_ps256(rows[i].v), rows[4 + i].v, 1);
    const __m256 high = _mm256_insertf128_ps(_mm256_castps128_ps256(rows[8 + i].v), rows[12 + i].v, 1);
    r[i] = _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
  }
  const __m512 a = _mm512_unpacklo_ps(r[0], r[1]), b = _mm512_unpackhi_ps(r[0], r[1]);
  const __m512 c = _mm512_unpacklo_ps(r[2], r[3]), d = _mm512_unpackhi_ps(r[2], r[3]);
  columns[0].v = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(c)));
  columns[1].v = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(c)));
  columns[2].v = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(b), _mm512_castps_pd(d)));
  columns[3].v = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(b), _mm512_castps_pd(d)));
}

struct Quad {
  __m512i v;
};
inline Quad load_quad(const int8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return {_mm512_set1_epi32(four)};
}

template <int Bits>
struct Sums {
  static constexpr int kMostAdds = 1 << 14;
  static constexpr int32_t kCentre = 0;
  static constexpr int kChains = 4;
  __m512i sums;

  void clear() { sums = _mm512_setzero_si512(); }
  void add(Codes codes, Quad q) { sums = _mm512_dpbusd_epi32(sums, codes.v, q.v); }
  Ints total() const { return {sums}; }
};

inline __m512i from_table(__m512i index, const uint8_t* table) {
  __m512i made;
  asm("vpermb %2, %1, %0" : "=v"(made) : "v"(index), "m"(*reinterpret_cast<const __m512i*>(table)));
  return made;
}

// start + the sum of those of q that the bits of an index name, for 16 indices: bits 0 to 7, and bits 8 to 15.
inline void store_table(const int32_t* q, int32_t start, uint8_t* low, uint8_t* high) {
  __m512i sums = _mm512_set1_epi32(start);
  sums = _mm512_mask_add_epi32(sums, 0xaaaa, sums, _mm512_set1_epi32(q[0]));
  sums = _mm512_mask_add_epi32(sums, 0xcccc, sums, _mm512_set1_epi32(q[1]));
  sums = _mm512_mask_add_epi32(sums, 0xf0f0, sums, _mm512_set1_epi32(q[2]));
  sums = _mm512_mask_add_epi32(sums, 0xff00, sums, _mm512_set1_epi32(q[3]));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm512_cvtepi32_epi8(sums));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm512_cvtepi32_epi8(_mm512_srli_epi32(sums, 8)));
}

// Sums of one block of a plane, `Vectors` of 32 columns: 16 rows x 4 bytes, each with 2 x 4 columns. See Batch::tables.
template <int Vectors>
inline Ints looked_up(const uint8_t* p, const uint8_t* tables) {
  const __m512i ones = _mm512_set1_epi8(1), nibble = _mm512_set1_epi8(15), place = _mm512_set1_epi32(0x30201000);
  __m512i low[2], high[2];
  for (int i = 0; i < 2; ++i) low[i] = high[i] = _mm512_setzero_si512();
  for (int v = 0; v < Vectors; ++v, p += kVector, tables += 4 * kVector) {
    const __m512i codes = _mm512_loadu_si512(p);
    const __m512i index[2] = {_mm512_ternarylogic_epi32(codes, nibble, place, 0xea),
                              _mm512_ternarylogic_epi32(_mm512_srli_epi16(codes, 4), nibble, place, 0xea)};
    for (int i = 0; i < 2; ++i) {
      low[i] = _mm512_dpbusd_epi32(low[i], from_table(index[i], tables + 2 * i * kVector), ones);
      high[i] = _mm512_dpbusd_epi32(high[i], ones, from_table(index[i], tables + (2 * i + 1) * kVector));
    }
  }
  return {_mm512_add_epi32(_mm512_slli_epi32(_mm512_add_epi32(high[0], high[1]), 8), _mm512_add_epi32(low[0], low[1]))};
}

// The innermost loop of prefill: a block of 3 tiles, `apart` bytes from each other, times 8 tokens. 24 sums, 3 vectors of weights
// and an activation fill the registers, and are laid down here: GCC 12 keeps such sums in memory as well, at half the speed.
// q: [vector][digit][token] of 4 bytes each; totals: [token][tile].
#define TRIMTAB_TOKEN(op, at, a, b, c)           \
  "vpbroadcastd " #at "*4(%[q]), %%zmm27\n" op   \
  " %%zmm27, %%zmm24, %%zmm" #a "\n" op          \
  " %%zmm27, %%zmm25, %%zmm" #b "\n" op          \
  " %%zmm27, %%zmm26, %%zmm" #c "\n"
#define TRIMTAB_VECTOR(op)                                                                                     \
  "prefetcht0 1024(%[q])\n"                                                                                    \
  "vmovdqu64 (%[p]), %%zmm24\n"                                                                                \
  "vmovdqu64 (%[p], %[apart]), %%zmm25\n"                                                                      \
  "vmovdqu64 (%[p], %[apart], 2), %%zmm26\n"                                                                   \
  TRIMTAB_TOKEN(op, 0, 0, 1, 2) TRIMTAB_TOKEN(op, 1, 3, 4, 5) TRIMTAB_TOKEN(op, 2, 6, 7, 8)                    \
  TRIMTAB_TOKEN(op, 3, 9, 10, 11) TRIMTAB_TOKEN(op, 4, 12, 13, 14) TRIMTAB_TOKEN(op, 5, 15, 16, 17)            \
  TRIMTAB_TOKEN(op, 6, 18, 19, 20) TRIMTAB_TOKEN(op, 7, 21, 22, 23)
#define TRIMTAB_SUMS(of)                                                                                       \
  of(0) of(1) of(2) of(3) of(4) of(5) of(6) of(7) of(8) of(9) of(10) of(11) of(12) of(13) of(14) of(15) of(16) \
      of(17) of(18) of(19) of(20) of(21) of(22) of(23)
#define TRIMTAB_CLEAR(i) "vpxord %%zmm" #i ", %%zmm" #i ", %%zmm" #i "\n"
#define TRIMTAB_SHIFT(i) "vpslld $7, %%zmm" #i ", %%zmm" #i "\n"
#define TRIMTAB_STORE(i) "vmovdqu64 %%zmm" #i ", " #i "*64(%[totals])\n"
#define TRIMTAB_TALL(op, each)                                                                                 \
  asm volatile(TRIMTAB_SUMS(TRIMTAB_CLEAR) "1:\n" TRIMTAB_VECTOR(op)                                           \
               "add $64, %[p]\n"                                                                               \
               "add %[stride], %[q]\n"                                                                         \
               "dec %[left]\n"                                                                                 \
               "jnz 1b\n"                                                                                      \
               "dec %[digits]\n"                                                                               \
               "jz 2f\n" TRIMTAB_SUMS(TRIMTAB_SHIFT)                                                           \
               "mov %[vectors], %[left]\n"                                                                     \
               "sub %[bytes], %[p]\n"                                                                          \
               "sub %[rest], %[q]\n"                                                                           \
               "jmp 1b\n"                                                                                      \
               "2:\n" TRIMTAB_SUMS(TRIMTAB_STORE)                                                              \
               : [p] "+&r"(p), [q] "+&r"(q), [left] "+&r"(left), [digits] "+&r"(digits)                        \
               : [apart] "r"(apart), [stride] "i"(32 * each), [vectors] "r"(vectors), [bytes] "r"(vectors * 64), \
                 [rest] "r"(vectors * 32 * each - 32), [totals] "r"(totals)                                    \
               : "memory", "cc", "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", \
                 "zmm10", "zmm11", "zmm12", "zmm13", "zmm14", "zmm15", "zmm16", "zmm17", "zmm18", "zmm19",     \
                 "zmm20", "zmm21", "zmm22", "zmm23", "zmm24", "zmm25", "zmm26", "zmm27")

// vectors: quads of columns, one or more.
template <int Digits>
inline void tall_dots(const uint8_t* p, int64_t apart, int64_t vectors, const int8_t* q, Ints* totals) {
  int64_t left = vectors, digits = Digits;
  TRIMTAB_TALL("vpdpbusd", Digits);
}

// vectors: pairs of columns, of weights and activations in bfloat16. Adds the product of the second column of a pair first, as
// `multiply` does. For processors that have AVX512_BF16.
inline void tall_floats(const uint8_t* p, int64_t apart, int64_t vectors, const int8_t* q, Floats* totals) {
  int64_t left = vectors, digits = 1;
  TRIMTAB_TALL("vdpbf16ps", 1);
}

}  // namespace
