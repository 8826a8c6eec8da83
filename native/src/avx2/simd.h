// Two 256-bit registers for 16 rows. Needs AVX2, FMA and F16C.

namespace {

constexpr int64_t kPrefetch = 4096;
constexpr int kTokens = 4, kExactTokens = 2, kTall = 1, kAtOnce = 1;
constexpr bool kTallDots = false;
constexpr bool kInPlace = false;
constexpr bool kLooksUp = false;

struct Codes {
  __m256i a, b;  // rows 0 to 7, rows 8 to 15
};
struct Ints {
  __m256i a, b;
};
struct Floats {
  __m256 a, b;
};

inline __m256i load_half(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Codes load_codes(const uint8_t* p) { return {load_half(p), load_half(p + 32)}; }
inline void store_codes(uint8_t* p, Codes c) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), c.a);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), c.b);
}

// Bits [From, From + Width) of every byte, moved to bit To. What a shift of 16 bits brings from the neighbour is masked out.
template <int Width, int From, int To>
inline Codes field(Codes c) {
  constexpr int kShift = From - To;
  const __m256i mask = _mm256_set1_epi8(static_cast<char>(((1 << Width) - 1) << To));
  if constexpr (kShift > 0) c = {_mm256_srli_epi16(c.a, kShift), _mm256_srli_epi16(c.b, kShift)};
  if constexpr (kShift < 0) c = {_mm256_slli_epi16(c.a, -kShift), _mm256_slli_epi16(c.b, -kShift)};
  return {_mm256_and_si256(c.a, mask), _mm256_and_si256(c.b, mask)};
}
inline Codes either(Codes c, Codes d) { return {_mm256_or_si256(c.a, d.a), _mm256_or_si256(c.b, d.b)}; }
template <int C>
inline Floats column(Codes c) {
  const __m256i mask = _mm256_set1_epi32(255);
  return {_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(c.a, 8 * C), mask)),
          _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(c.b, 8 * C), mask))};
}

inline Ints splat_int(int32_t v) { return {_mm256_set1_epi32(v), _mm256_set1_epi32(v)}; }
inline Ints operator+(Ints c, Ints d) { return {_mm256_add_epi32(c.a, d.a), _mm256_add_epi32(c.b, d.b)}; }
inline Ints times_128(Ints c) { return {_mm256_slli_epi32(c.a, 7), _mm256_slli_epi32(c.b, 7)}; }
template <int Shift>
inline Ints shifted_down(Ints c) {
  if constexpr (Shift == 0) return c;
  return {_mm256_srai_epi32(c.a, Shift), _mm256_srai_epi32(c.b, Shift)};
}
inline Floats to_floats(Ints c) { return {_mm256_cvtepi32_ps(c.a), _mm256_cvtepi32_ps(c.b)}; }

inline Floats splat(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
inline Floats zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Floats c) {
  _mm256_storeu_ps(p, c.a);
  _mm256_storeu_ps(p + 8, c.b);
}
inline Floats add(Floats c, Floats d) { return {_mm256_add_ps(c.a, d.a), _mm256_add_ps(c.b, d.b)}; }
inline Floats sub(Floats c, Floats d) { return {_mm256_sub_ps(c.a, d.a), _mm256_sub_ps(c.b, d.b)}; }
inline Floats mul(Floats c, Floats d) { return {_mm256_mul_ps(c.a, d.a), _mm256_mul_ps(c.b, d.b)}; }
inline Floats fma(Floats c, Floats d, Floats e) { return {_mm256_fmadd_ps(c.a, d.a, e.a), _mm256_fmadd_ps(c.b, d.b, e.b)}; }
// d where one of the two is NaN.
inline Floats larger(Floats c, Floats d) { return {_mm256_max_ps(c.a, d.a), _mm256_max_ps(c.b, d.b)}; }
// 2^n from n + 1.5 * 2^23, for whole n from -126 to 127.
inline __m256 power_of_two(__m256 shifted) {
  const __m256i bias = _mm256_set1_epi32(127 - 0x4b400000);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_castps_si256(shifted), bias), 23));
}
inline Floats power_of_two(Floats shifted) { return {power_of_two(shifted.a), power_of_two(shifted.b)}; }
inline Floats negated(Floats c) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_xor_ps(c.a, sign), _mm256_xor_ps(c.b, sign)};
}
inline __m128i load_16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline Floats from_bytes(const uint8_t* p) {
  const __m128i bytes = load_16(p);
  return to_floats({_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))});
}
inline Floats from_bfloats(const uint8_t* p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_16(p)), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_16(p + 16)), 16))};
}
// Two columns: 16 rows x 2 bfloat16.
inline void from_bfloat_pairs(const uint8_t* p, Floats& first, Floats& second) {
  const __m256i a = load_half(p), b = load_half(p + 32), high = _mm256_set1_epi32(static_cast<int32_t>(0xffff0000));
  first = {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
  second = {_mm256_castsi256_ps(_mm256_and_si256(a, high)), _mm256_castsi256_ps(_mm256_and_si256(b, high))};
}
inline Floats from_halves(const uint8_t* p) { return {_mm256_cvtph_ps(load_16(p)), _mm256_cvtph_ps(load_16(p + 16))}; }

// For every mask of 8 rows, which of the next values a row takes; 255 for none.
struct Places {
  uint8_t of[256][8];
};
constexpr Places places() {
  Places made{};
  for (int mask = 0; mask < 256; ++mask)
    for (int row = 0, next = 0; row < 8; ++row) made.of[mask][row] = mask >> row & 1 ? static_cast<uint8_t>(next++) : 255;
  return made;
}
constexpr Places kPlaces = places();

template <Store S>
inline __m256 eight(const uint8_t* p) {
  if constexpr (S == Store::float32) return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
  if constexpr (S == Store::float16) return _mm256_cvtph_ps(load_16(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_16(p)), 16));
}
inline __m256 spread_eight(__m256 next, uint32_t mask) {
  const __m256i from = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPlaces.of[mask])));
  return _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_srai_epi32(from, 31)), _mm256_permutevar8x32_ps(next, from));
}
// The next values at p, one for every row in `mask`; the other rows are 0.
template <Store S>
inline Floats spread(const uint8_t* p, uint32_t mask) {
  const uint32_t low = mask & 255;
  const uint8_t* const rest = p + __builtin_popcount(low) * (S == Store::float32 ? 4 : 2);
  return {spread_eight(eight<S>(p), low), spread_eight(eight<S>(rest), mask >> 8)};
}

// Byte C of every row's 4.
template <int C>
inline Ints code_at(const uint8_t* p) {
  const __m256i mask = _mm256_set1_epi32(255);
  return {_mm256_and_si256(_mm256_srli_epi32(load_half(p), 8 * C), mask),
          _mm256_and_si256(_mm256_srli_epi32(load_half(p + 32), 8 * C), mask)};
}
inline Ints times(Ints c, int32_t factor) {
  const __m256i f = _mm256_set1_epi32(factor);
  return {_mm256_mullo_epi32(c.a, f), _mm256_mullo_epi32(c.b, f)};
}
inline void store_ints(int32_t* p, Ints c) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), c.a);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), c.b);
}
inline Floats gathered(const float* table, Ints index) {
  return {_mm256_i32gather_ps(table, index.a, 4), _mm256_i32gather_ps(table, index.b, 4)};
}
// Bit 3 of an index says which half of the table; it is the sign after the shift.
inline __m256 of_16(__m256 low, __m256 high, __m256i index) {
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index), _mm256_permutevar8x32_ps(high, index),
                          _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}
inline Floats of_16(const float* table, Ints index) {
  const __m256 low = _mm256_loadu_ps(table), high = _mm256_loadu_ps(table + 8);
  return {of_16(low, high, index.a), of_16(low, high, index.b)};
}

// 4 numbers of one row.
struct Four {
  __m128 v;
};
inline Four load_four(const float* p) { return {_mm_loadu_ps(p)}; }
inline Four add_four(Four a, Four b) { return {_mm_add_ps(a.v, b.v)}; }
// Rows i and 4 + i of a half in a register, then 4 x 4 turned in every quarter.
inline void turn_eight(const Four* rows, __m256* columns) {
  __m256 r[4];
  for (int i = 0; i < 4; ++i) r[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(rows[i].v), rows[4 + i].v, 1);
  const __m256 a = _mm256_unpacklo_ps(r[0], r[1]), b = _mm256_unpackhi_ps(r[0], r[1]);
  const __m256 c = _mm256_unpacklo_ps(r[2], r[3]), d = _mm256_unpackhi_ps(r[2], r[3]);
  columns[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(c)));
  columns[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(c)));
  columns[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(b), _mm256_castps_pd(d)));
  columns[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(b), _mm256_castps_pd(d)));
}
inline void turn(const Four* rows, Floats* columns) {
  __m256 low[4], high[4];
  turn_eight(rows, low);
  turn_eight(rows + 8, high);
  for (int i = 0; i < 4; ++i) columns[i] = {low[i], high[i]};
}

struct Quad {
  __m256i v;
};
inline Quad load_quad(const int8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return {_mm256_set1_epi32(four)};
}
inline __m256i widen(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

// Codes up to 15: pairs are summed in 16 bits, at most 8 times 2 * 15 * 127, and widened once.
template <int Bits>
struct Sums {
  static constexpr int kMostAdds = 8;
  static constexpr int32_t kCentre = 0;
  static constexpr int kChains = 2;
  static_assert(Bits <= 4 && kMostAdds * 2 * 15 * 127 <= 32767);
  __m256i a, b;

  void clear() { a = b = _mm256_setzero_si256(); }
  void add(Codes codes, Quad q) {
    a = _mm256_add_epi16(a, _mm256_maddubs_epi16(codes.a, q.v));
    b = _mm256_add_epi16(b, _mm256_maddubs_epi16(codes.b, q.v));
  }
  Ints total() const { return {widen(a), widen(b)}; }
};

// Codes up to 127: a pair just fits into 16 bits.
struct WideSums {
  static constexpr int kMostAdds = 1 << 14;
  static constexpr int32_t kCentre = 0;
  static constexpr int kChains = 1;
  __m256i a, b;

  void clear() { a = b = _mm256_setzero_si256(); }
  void add(Codes codes, Quad q) {
    a = _mm256_add_epi32(a, widen(_mm256_maddubs_epi16(codes.a, q.v)));
    b = _mm256_add_epi32(b, widen(_mm256_maddubs_epi16(codes.b, q.v)));
  }
  Ints total() const { return {a, b}; }
};
template <>
struct Sums<5> : WideSums {};
template <>
struct Sums<6> : WideSums {};
template <>
struct Sums<7> : WideSums {};

// Codes up to 255 would not: they are taken as code - 128, magnitude times signed activation, and the centre is added later.
template <>
struct Sums<8> {
  static constexpr int kMostAdds = 1 << 14;
  static constexpr int32_t kCentre = 128;
  static constexpr int kChains = 1;
  __m256i a, b;

  void clear() { a = b = _mm256_setzero_si256(); }
  static __m256i product(__m256i codes, __m256i quad) {
    const __m256i centred = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
    return widen(_mm256_maddubs_epi16(_mm256_abs_epi8(centred), _mm256_sign_epi8(quad, centred)));
  }
  void add(Codes codes, Quad q) {
    a = _mm256_add_epi32(a, product(codes.a, q.v));
    b = _mm256_add_epi32(b, product(codes.b, q.v));
  }
  Ints total() const { return {a, b}; }
};

// Never called: there is neither kLooksUp nor kTallDots.
template <int Vectors>
Ints looked_up(const uint8_t*, const uint8_t*);
template <class Integer>
void store_table(const Integer*, int32_t, uint8_t*, uint8_t*);
template <int Digits>
void tall_dots(const uint8_t*, int64_t, int64_t, const int8_t*, Ints*);

}  // namespace
