// Registers as plain arrays: the specification of the other instruction sets, and what runs where there is no other.

namespace {

constexpr int64_t kPrefetch = 1024;
constexpr int kTokens = 4, kExactTokens = 4, kTall = 1, kAtOnce = 1;
constexpr bool kTallDots = false;
constexpr bool kInPlace = false;
constexpr bool kLooksUp = false;

struct Codes {
  uint8_t v[64];
};
struct Ints {
  int32_t v[16];
};
struct Floats {
  float v[16];
};

inline Codes load_codes(const uint8_t* p) {
  Codes made;
  __builtin_memcpy(made.v, p, 64);
  return made;
}
inline void store_codes(uint8_t* p, Codes a) { __builtin_memcpy(p, a.v, 64); }

// Bits [From, From + Width) of every byte, moved to bit To.
template <int Width, int From, int To>
inline Codes field(Codes a) {
  for (uint8_t& byte : a.v) byte = static_cast<uint8_t>((byte >> From & ((1 << Width) - 1)) << To);
  return a;
}
inline Codes either(Codes a, Codes b) {
  for (int i = 0; i < 64; ++i) a.v[i] = static_cast<uint8_t>(a.v[i] | b.v[i]);
  return a;
}
template <int C>
inline Floats column(Codes a) {
  Floats made;
  for (int r = 0; r < 16; ++r) made.v[r] = a.v[4 * r + C];
  return made;
}

inline Ints splat_int(int32_t a) {
  Ints made;
  for (int32_t& v : made.v) v = a;
  return made;
}
inline Ints operator+(Ints a, Ints b) {
  for (int r = 0; r < 16; ++r) a.v[r] += b.v[r];
  return a;
}
inline Ints times_128(Ints a) {
  for (int32_t& v : a.v) v *= 128;
  return a;
}
template <int Shift>
inline Ints shifted_down(Ints a) {
  for (int32_t& v : a.v) v >>= Shift;
  return a;
}
inline Floats to_floats(Ints a) {
  Floats made;
  for (int r = 0; r < 16; ++r) made.v[r] = static_cast<float>(a.v[r]);
  return made;
}

inline Floats splat(float a) {
  Floats made;
  for (float& v : made.v) v = a;
  return made;
}
inline Floats zeros() { return splat(0.0f); }
inline Floats load(const float* p) {
  Floats made;
  __builtin_memcpy(made.v, p, 64);
  return made;
}
inline void store(float* p, Floats a) { __builtin_memcpy(p, a.v, 64); }
inline Floats add(Floats a, Floats b) {
  for (int r = 0; r < 16; ++r) a.v[r] += b.v[r];
  return a;
}
inline Floats sub(Floats a, Floats b) {
  for (int r = 0; r < 16; ++r) a.v[r] -= b.v[r];
  return a;
}
inline Floats mul(Floats a, Floats b) {
  for (int r = 0; r < 16; ++r) a.v[r] *= b.v[r];
  return a;
}
inline Floats fma(Floats a, Floats b, Floats c) {  // two roundings: a fused one would be a call without the instruction
  for (int r = 0; r < 16; ++r) c.v[r] += a.v[r] * b.v[r];
  return c;
}
// b where one of the two is NaN.
inline Floats larger(Floats a, Floats b) {
  for (int r = 0; r < 16; ++r) b.v[r] = a.v[r] > b.v[r] ? a.v[r] : b.v[r];
  return b;
}
// 2^n from n + 1.5 * 2^23, for whole n from -126 to 127.
inline Floats power_of_two(Floats shifted) {
  for (float& v : shifted.v) {
    uint32_t bits;
    __builtin_memcpy(&bits, &v, 4);
    bits = (bits - 0x4b400000u + 127u) << 23;
    __builtin_memcpy(&v, &bits, 4);
  }
  return shifted;
}
inline Floats negated(Floats a) {
  for (float& v : a.v) v = -v;
  return a;
}
inline Floats from_bytes(const uint8_t* p) {
  Floats made;
  for (int r = 0; r < 16; ++r) made.v[r] = p[r];
  return made;
}
inline Floats from_bfloats(const uint8_t* p) {
  Floats made;
  for (int r = 0; r < 16; ++r) {
    const uint32_t bits = static_cast<uint32_t>(p[2 * r] | p[2 * r + 1] << 8) << 16;
    __builtin_memcpy(&made.v[r], &bits, 4);
  }
  return made;
}
// Two columns: 16 rows x 2 bfloat16.
inline void from_bfloat_pairs(const uint8_t* p, Floats& first, Floats& second) {
  for (int r = 0; r < 16; ++r) {
    const uint32_t low = static_cast<uint32_t>(p[4 * r] | p[4 * r + 1] << 8) << 16;
    const uint32_t high = static_cast<uint32_t>(p[4 * r + 2] | p[4 * r + 3] << 8) << 16;
    __builtin_memcpy(&first.v[r], &low, 4);
    __builtin_memcpy(&second.v[r], &high, 4);
  }
}
inline float from_half(uint32_t half) {
  const uint32_t sign = (half & 0x8000) << 16, magnitude = half & 0x7fff;
  uint32_t bits = (magnitude << 13) + 0x38000000;  // the exponents' biases differ by 112
  if (magnitude >= 0x7c00) bits = magnitude << 13 | 0x7f800000;
  float made;
  __builtin_memcpy(&made, &bits, 4);
  if (magnitude < 0x400) made = static_cast<float>(magnitude) * 0x1p-24f;  // subnormal: a multiple of the smallest number
  __builtin_memcpy(&bits, &made, 4);
  bits |= sign;
  __builtin_memcpy(&made, &bits, 4);
  return made;
}
inline Floats from_halves(const uint8_t* p) {
  Floats made;
  for (int r = 0; r < 16; ++r) made.v[r] = from_half(static_cast<uint32_t>(p[2 * r] | p[2 * r + 1] << 8));
  return made;
}

// The next values at p, one for every row in `mask`; the other rows are 0.
template <Store S>
inline Floats spread(const uint8_t* p, uint32_t mask) {
  Floats made = zeros();
  for (int r = 0; r < 16; ++r) {
    if (!(mask >> r & 1)) continue;
    if constexpr (S == Store::float32) {
      __builtin_memcpy(&made.v[r], p, 4);
      p += 4;
    } else {
      const uint32_t half = static_cast<uint32_t>(p[0] | p[1] << 8), bits = half << 16;
      if constexpr (S == Store::float16) made.v[r] = from_half(half);
      if constexpr (S == Store::bfloat16) __builtin_memcpy(&made.v[r], &bits, 4);
      p += 2;
    }
  }
  return made;
}

// Byte C of every row's 4.
template <int C>
inline Ints code_at(const uint8_t* p) {
  Ints made;
  for (int r = 0; r < 16; ++r) made.v[r] = p[4 * r + C];
  return made;
}
inline Ints times(Ints a, int32_t factor) {
  for (int32_t& v : a.v) v *= factor;
  return a;
}
inline void store_ints(int32_t* p, Ints a) { __builtin_memcpy(p, a.v, 64); }
inline Floats gathered(const float* table, Ints index) {
  Floats made;
  for (int r = 0; r < 16; ++r) made.v[r] = table[index.v[r]];
  return made;
}
inline Floats of_16(const float* table, Ints index) { return gathered(table, index); }

// 4 numbers of one row.
struct Four {
  float v[4];
};
inline Four load_four(const float* p) {
  Four made;
  __builtin_memcpy(made.v, p, 16);
  return made;
}
inline Four add_four(Four a, Four b) {
  for (int i = 0; i < 4; ++i) a.v[i] += b.v[i];
  return a;
}
inline void turn(const Four* rows, Floats* columns) {
  for (int c = 0; c < 4; ++c)
    for (int r = 0; r < 16; ++r) columns[c].v[r] = rows[r].v[c];
}

struct Quad {
  int8_t v[4];
};
inline Quad load_quad(const int8_t* p) {
  Quad made;
  __builtin_memcpy(made.v, p, 4);
  return made;
}

template <int Bits>
struct Sums {
  static constexpr int kMostAdds = 1 << 14;
  static constexpr int32_t kCentre = 0;
  static constexpr int kChains = 1;
  Ints sums;

  void clear() { sums = splat_int(0); }
  void add(Codes codes, Quad q) {
    for (int r = 0; r < 16; ++r)
      for (int c = 0; c < 4; ++c) sums.v[r] += codes.v[4 * r + c] * q.v[c];
  }
  Ints total() const { return sums; }
};

// Never called: there is neither kLooksUp nor kTallDots.
template <int Vectors>
Ints looked_up(const uint8_t*, const uint8_t*);
template <class Integer>
void store_table(const Integer*, int32_t, uint8_t*, uint8_t*);
template <int Digits>
void tall_dots(const uint8_t*, int64_t, int64_t, const int8_t*, Ints*);

}  // namespace
