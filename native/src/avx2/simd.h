// Two 256-bit registers for 16 rows. Needs AVX2, FMA and F16C.

namespace {

constexpr int64_t kPrefetch = 1024;
constexpr int kTokens = 4, kExactTokens = 2, kTall = 1;
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
template <int Digits>
void tall_dots(const uint8_t*, int64_t, int64_t, const int8_t*, Ints*);

}  // namespace
