// One 512-bit register for 16 rows. Needs F, BW, VL, DQ and VNNI.

namespace {

constexpr int64_t kPrefetch = 512;
constexpr int kTokens = 8, kExactTokens = 8, kTall = 2;
constexpr bool kInPlace = true;

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
inline Floats negated(Floats a) { return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))}; }
inline Floats from_bytes(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline Floats from_bfloats(const uint8_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline Floats from_halves(const uint8_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }

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
  __m512i sums = _mm512_setzero_si512();

  void add(Codes codes, Quad q) { sums = _mm512_dpbusd_epi32(sums, codes.v, q.v); }
  Ints total() const { return {sums}; }
};

}  // namespace
