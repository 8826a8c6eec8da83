// Four 128-bit registers for 16 rows. Needs what every 64-bit ARM processor has, and with TRIMTAB_DOTPROD its dot products, too.

namespace {

constexpr int64_t kPrefetch = 1024;
#if defined(TRIMTAB_DOTPROD)
constexpr int kTokens = 4;
#else
constexpr int kTokens = 2;
#endif
constexpr int kExactTokens = 4, kTall = 1;
constexpr bool kTallDots = false;
constexpr bool kInPlace = false;
constexpr bool kLooksUp = false;

// Register i holds rows 4 * i to 4 * i + 3.
struct Codes {
  uint8x16_t v[4];
};
struct Ints {
  int32x4_t v[4];
};
struct Floats {
  float32x4_t v[4];
};

// made.v[i] = f(i) for the four registers.
template <class Made, class F>
inline Made four(F&& f) {
  return {{f(0), f(1), f(2), f(3)}};
}

inline Codes load_codes(const uint8_t* p) {
  return four<Codes>([=](int i) { return vld1q_u8(p + 16 * i); });
}
inline void store_codes(uint8_t* p, Codes c) {
  for (int i = 0; i < 4; ++i) vst1q_u8(p + 16 * i, c.v[i]);
}

// Bits [From, From + Width) of every byte, moved to bit To.
template <int Width, int From, int To>
inline Codes field(Codes c) {
  constexpr int kShift = From - To;
  return four<Codes>([=](int i) {
    uint8x16_t byte = c.v[i];
    if constexpr (kShift > 0) byte = vshrq_n_u8(byte, kShift);
    if constexpr (kShift < 0) byte = vshlq_n_u8(byte, -kShift);
    return vandq_u8(byte, vdupq_n_u8(static_cast<uint8_t>(((1 << Width) - 1) << To)));
  });
}
inline Codes either(Codes c, Codes d) {
  return four<Codes>([=](int i) { return vorrq_u8(c.v[i], d.v[i]); });
}
template <int C>
inline uint32x4_t byte_of(uint8x16_t codes) {
  uint32x4_t word = vreinterpretq_u32_u8(codes);
  if constexpr (C > 0) word = vshrq_n_u32(word, 8 * C);
  return vandq_u32(word, vdupq_n_u32(255));
}
template <int C>
inline Floats column(Codes c) {
  return four<Floats>([=](int i) { return vcvtq_f32_u32(byte_of<C>(c.v[i])); });
}

inline Ints splat_int(int32_t v) {
  return four<Ints>([=](int) { return vdupq_n_s32(v); });
}
inline Ints operator+(Ints c, Ints d) {
  return four<Ints>([=](int i) { return vaddq_s32(c.v[i], d.v[i]); });
}
inline Ints times_128(Ints c) {
  return four<Ints>([=](int i) { return vshlq_n_s32(c.v[i], 7); });
}
template <int Shift>
inline Ints shifted_down(Ints c) {
  static_assert(Shift == 0, "fields are moved to bit 0");
  return c;
}
inline Floats to_floats(Ints c) {
  return four<Floats>([=](int i) { return vcvtq_f32_s32(c.v[i]); });
}

inline Floats splat(float v) {
  return four<Floats>([=](int) { return vdupq_n_f32(v); });
}
inline Floats zeros() { return splat(0.0f); }
inline Floats load(const float* p) {
  return four<Floats>([=](int i) { return vld1q_f32(p + 4 * i); });
}
inline void store(float* p, Floats c) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, c.v[i]);
}
inline Floats add(Floats c, Floats d) {
  return four<Floats>([=](int i) { return vaddq_f32(c.v[i], d.v[i]); });
}
inline Floats sub(Floats c, Floats d) {
  return four<Floats>([=](int i) { return vsubq_f32(c.v[i], d.v[i]); });
}
inline Floats mul(Floats c, Floats d) {
  return four<Floats>([=](int i) { return vmulq_f32(c.v[i], d.v[i]); });
}
inline Floats fma(Floats c, Floats d, Floats e) {
  return four<Floats>([=](int i) { return vfmaq_f32(e.v[i], c.v[i], d.v[i]); });
}
inline Floats negated(Floats c) {
  return four<Floats>([=](int i) { return vnegq_f32(c.v[i]); });
}
// Four numbers from memory that need not be aligned.
template <Store S>
inline float32x4_t next_four(const uint8_t* p) {
  if constexpr (S == Store::float32) return vreinterpretq_f32_u8(vld1q_u8(p));
  if constexpr (S == Store::float16) return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
  return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16));
}
inline Floats from_bytes(const uint8_t* p) {
  const uint8x16_t bytes = vld1q_u8(p);
  const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_u8(vget_high_u8(bytes));
  return {{vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(low))),
           vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(high)))}};
}
inline Floats from_bfloats(const uint8_t* p) {
  return four<Floats>([=](int i) { return next_four<Store::bfloat16>(p + 8 * i); });
}
inline Floats from_halves(const uint8_t* p) {
  return four<Floats>([=](int i) { return next_four<Store::float16>(p + 8 * i); });
}
// Two columns: 16 rows x 2 bfloat16.
inline void from_bfloat_pairs(const uint8_t* p, Floats& first, Floats& second) {
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t pairs = vreinterpretq_u32_u8(vld1q_u8(p + 16 * i));
    first.v[i] = vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
    second.v[i] = vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000u)));
  }
}

// For every mask of 4 rows, which bytes of the next values a row takes, 255 for none; and how many values there are.
struct Places {
  uint8_t of[16][16];
  uint8_t count[16];
};
constexpr Places places() {
  Places made{};
  for (int mask = 0; mask < 16; ++mask) {
    int next = 0;
    for (int row = 0; row < 4; ++row) {
      for (int b = 0; b < 4; ++b) made.of[mask][4 * row + b] = mask >> row & 1 ? static_cast<uint8_t>(4 * next + b) : 255;
      next += mask >> row & 1;
    }
    made.count[mask] = static_cast<uint8_t>(next);
  }
  return made;
}
constexpr Places kPlaces = places();

// The next values at p, one for every row in `mask`; the other rows are 0.
template <Store S>
inline Floats spread(const uint8_t* p, uint32_t mask) {
  Floats made;
  for (int i = 0; i < 4; ++i, mask >>= 4) {
    const uint8x16_t next = vreinterpretq_u8_f32(next_four<S>(p));
    made.v[i] = vreinterpretq_f32_u8(vqtbl1q_u8(next, vld1q_u8(kPlaces.of[mask & 15])));
    p += kPlaces.count[mask & 15] * (S == Store::float32 ? 4 : 2);
  }
  return made;
}

// Byte C of every row's 4.
template <int C>
inline Ints code_at(const uint8_t* p) {
  return four<Ints>([=](int i) { return vreinterpretq_s32_u32(byte_of<C>(vld1q_u8(p + 16 * i))); });
}
inline Ints times(Ints c, int32_t factor) {
  return four<Ints>([=](int i) { return vmulq_n_s32(c.v[i], factor); });
}
inline void store_ints(int32_t* p, Ints c) {
  for (int i = 0; i < 4; ++i) vst1q_s32(p + 4 * i, c.v[i]);
}
inline Floats gathered(const float* table, Ints index) {
  int32_t at[16];
  float found[16];
  store_ints(at, index);
  for (int r = 0; r < 16; ++r) found[r] = table[at[r]];
  return load(found);
}
inline Floats of_16(const float* table, Ints index) {
  const auto* const bytes = reinterpret_cast<const uint8_t*>(table);
  const uint8x16x4_t all = {{vld1q_u8(bytes), vld1q_u8(bytes + 16), vld1q_u8(bytes + 32), vld1q_u8(bytes + 48)}};
  return four<Floats>([=](int i) {
    const uint32x4_t first = vmulq_n_u32(vreinterpretq_u32_s32(index.v[i]), 0x04040404u);
    return vreinterpretq_f32_u8(vqtbl4q_u8(all, vreinterpretq_u8_u32(vaddq_u32(first, vdupq_n_u32(0x03020100u)))));
  });
}

// 4 numbers of one row.
struct Four {
  float32x4_t v;
};
inline Four load_four(const float* p) { return {vld1q_f32(p)}; }
inline Four add_four(Four a, Four b) { return {vaddq_f32(a.v, b.v)}; }
inline float32x4_t pairs(float32x4_t a, float32x4_t b, bool high) {
  const float64x2_t c = vreinterpretq_f64_f32(a), d = vreinterpretq_f64_f32(b);
  return vreinterpretq_f32_f64(high ? vtrn2q_f64(c, d) : vtrn1q_f64(c, d));
}
inline void turn(const Four* rows, Floats* columns) {
  for (int i = 0; i < 4; ++i, rows += 4) {
    const float32x4_t a = vtrn1q_f32(rows[0].v, rows[1].v), b = vtrn2q_f32(rows[0].v, rows[1].v);
    const float32x4_t c = vtrn1q_f32(rows[2].v, rows[3].v), d = vtrn2q_f32(rows[2].v, rows[3].v);
    columns[0].v[i] = pairs(a, c, false);
    columns[1].v[i] = pairs(b, d, false);
    columns[2].v[i] = pairs(a, c, true);
    columns[3].v[i] = pairs(b, d, true);
  }
}

struct Quad {
  int8x16_t v;
};
inline Quad load_quad(const int8_t* p) {
  int32_t bytes;
  __builtin_memcpy(&bytes, p, 4);
  return {vreinterpretq_s8_s32(vdupq_n_s32(bytes))};
}

#if defined(TRIMTAB_DOTPROD)
// Centre: what codes are too small by, so that they are signed bytes.
template <int Centre>
struct WideSums {
  static constexpr int kMostAdds = 1 << 14;
  static constexpr int32_t kCentre = Centre;
  static constexpr int kChains = 1;
  int32x4_t v[4];

  void clear() {
    for (auto& sum : v) sum = vdupq_n_s32(0);
  }
  void add(Codes codes, Quad q) {
    for (int i = 0; i < 4; ++i) {
      const uint8x16_t code = Centre ? veorq_u8(codes.v[i], vdupq_n_u8(Centre)) : codes.v[i];
      v[i] = vdotq_s32(v[i], vreinterpretq_s8_u8(code), q.v);
    }
  }
  Ints total() const { return {{v[0], v[1], v[2], v[3]}}; }
};
template <int Bits>
struct Sums : WideSums<0> {};
#else
// Codes up to 15: columns are summed in 16 bits, at most 16 times 15 * 127, and brought together once.
template <int Bits>
struct Sums {
  static constexpr int kMostAdds = 16;
  static constexpr int32_t kCentre = 0;
  static constexpr int kChains = 1;
  static_assert(Bits <= 4 && kMostAdds * 15 * 127 <= 32767);
  int16x8_t low[4], high[4];

  void clear() {
    for (int i = 0; i < 4; ++i) low[i] = high[i] = vdupq_n_s16(0);
  }
  void add(Codes codes, Quad q) {
    for (int i = 0; i < 4; ++i) {
      const int8x16_t code = vreinterpretq_s8_u8(codes.v[i]);
      low[i] = vmlal_s8(low[i], vget_low_s8(code), vget_low_s8(q.v));
      high[i] = vmlal_high_s8(high[i], code, q.v);
    }
  }
  Ints total() const {
    return four<Ints>([this](int i) { return vpaddq_s32(vpaddlq_s16(low[i]), vpaddlq_s16(high[i])); });
  }
};

// Codes up to 127, or as much around 0: two products just fit into 16 bits. Centre: what codes are too small by then.
template <int Centre>
struct WideSums {
  static constexpr int kMostAdds = 1 << 14;
  static constexpr int32_t kCentre = Centre;
  static constexpr int kChains = 1;
  int32x4_t v[4];

  void clear() {
    for (auto& sum : v) sum = vdupq_n_s32(0);
  }
  void add(Codes codes, Quad q) {
    for (int i = 0; i < 4; ++i) {
      const int8x16_t code = vreinterpretq_s8_u8(Centre ? veorq_u8(codes.v[i], vdupq_n_u8(Centre)) : codes.v[i]);
      const int16x8_t low = vmull_s8(vget_low_s8(code), vget_low_s8(q.v)), high = vmull_high_s8(code, q.v);
      v[i] = vpadalq_s16(v[i], vpaddq_s16(low, high));
    }
  }
  Ints total() const { return {{v[0], v[1], v[2], v[3]}}; }
};
template <>
struct Sums<5> : WideSums<0> {};
template <>
struct Sums<6> : WideSums<0> {};
template <>
struct Sums<7> : WideSums<0> {};
#endif
template <>
struct Sums<8> : WideSums<128> {};

// Never called: there is neither kLooksUp nor kTallDots.
template <int Vectors>
Ints looked_up(const uint8_t*, const uint8_t*);
template <int Digits>
void tall_dots(const uint8_t*, int64_t, int64_t, const int8_t*, Ints*);

}  // namespace
