// The kernels against a reference in double precision that reads the file's own bits, without Python: made to run under
// sanitizers. Inputs lie in allocations of exactly their size, outputs between guards, so that every byte too many is seen.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "trimtab/linear.h"
#include "trimtab/pool.h"

using namespace trimtab;

namespace {

int passed = 0, failed = 0;

}  // namespace

namespace check {

void expect(bool holds, const std::string& what) {
  holds ? ++passed : ++failed;
  if (!holds) std::printf("FAILED: %s\n", what.c_str());
}

void refused(const std::string& what, const std::function<void()>& act) {
  try {
    act();
    expect(false, what + " was not refused");
  } catch (const std::invalid_argument&) {
    expect(true, what);
  }
}

int64_t draw(Random& random, int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random); }

}  // namespace check

using namespace check;

namespace {

// An allocation of exactly so many bytes.
struct Exact {
  std::unique_ptr<uint8_t[]> data;
  int64_t size;
  explicit Exact(int64_t n) : data(new uint8_t[static_cast<std::size_t>(n)]), size(n) {}
  Bytes bytes() const { return {data.get(), size}; }
};

Exact random_bytes(Random& random, int64_t n) {
  Exact made(n);
  for (int64_t i = 0; i < n; ++i) made.data[i] = static_cast<uint8_t>(draw(random, 0, 255));
  return made;
}

double half(const Exact& bytes, int64_t index) {
  const int bits = bytes.data[2 * index] | bytes.data[2 * index + 1] << 8, exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double magnitude = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
  return bits & 0x8000 ? -magnitude : magnitude;
}

// Halves of both signs, some of them subnormal or zero, none infinite.
Exact random_halves(Random& random, int64_t n) {
  Exact made(n * 2);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t exponent = draw(random, 0, 9) == 0 ? 0 : draw(random, 5, 14);
    const int64_t bits = draw(random, 0, 1) << 15 | exponent << 10 | draw(random, 0, 1023);
    made.data[2 * i] = static_cast<uint8_t>(bits);
    made.data[2 * i + 1] = static_cast<uint8_t>(bits >> 8);
  }
  return made;
}

int64_t code(const Exact& bytes, int64_t row, int64_t width, int64_t bits, int64_t index) {
  int64_t value = 0;
  for (int64_t j = 0; j < bits; ++j) {
    const int64_t at = index * bits + j;
    value |= static_cast<int64_t>(bytes.data[row * width + at / 8] >> (at % 8) & 1) << j;
  }
  return value;
}

int64_t width_of(int64_t n, int64_t bits) { return (n * bits + 7) / 8; }

struct Case {
  std::string name;
  Matrix matrix;
  std::vector<double> dense;  // [out, in]
};

Case grouped(Random& random, int64_t out, int64_t in, int64_t bits, int64_t group, bool with_zero) {
  const int64_t groups = in / group, width = width_of(in, bits), zeros = width_of(groups, bits);
  const Exact codes = random_bytes(random, out * width), scale = random_halves(random, out * groups);
  const Exact zero = random_bytes(random, out * zeros);
  std::vector<double> dense(static_cast<std::size_t>(out * in));
  for (int64_t r = 0; r < out; ++r)
    for (int64_t c = 0; c < in; ++c) {
      const double middle = with_zero ? static_cast<double>(code(zero, r, zeros, bits, c / group)) : 1 << (bits - 1);
      dense[static_cast<std::size_t>(r * in + c)] =
          (static_cast<double>(code(codes, r, width, bits, c)) - middle) * half(scale, r * groups + c / group);
    }
  return {"grouped " + std::to_string(bits),
          Matrix::grouped(codes.bytes(), scale.bytes(), with_zero ? zero.bytes() : Bytes{}, out, in, bits, group),
          std::move(dense)};
}

// whole: every plane counts twice as much as the one before it.
Case bitplanes(Random& random, int64_t out, int64_t in, int64_t count, int64_t group, bool whole) {
  const int64_t groups = in / group, width = width_of(in, 1);
  const Exact planes = random_bytes(random, count * out * width), scale = random_halves(random, out * groups * count);
  for (int64_t i = 0; whole && i < out * groups; ++i) {
    uint16_t first;
    std::memcpy(&first, scale.data.get() + i * count * 2, 2);
    for (int64_t j = 0; j < count; ++j) {
      const auto doubled = static_cast<uint16_t>((first & 0x7fff) < 0x400 ? 0 : first + (j << 10));
      std::memcpy(scale.data.get() + (i * count + j) * 2, &doubled, 2);
    }
  }
  const Exact offset = random_halves(random, out * groups);
  std::vector<double> dense(static_cast<std::size_t>(out * in));
  for (int64_t r = 0; r < out; ++r)
    for (int64_t c = 0; c < in; ++c) {
      const int64_t g = r * groups + c / group;
      double w = half(offset, g);
      for (int64_t j = 0; j < count; ++j)
        w += half(scale, g * count + j) * static_cast<double>(code(planes, j * out + r, width, 1, c));
      dense[static_cast<std::size_t>(r * in + c)] = w;
    }
  return {(whole ? "doubling planes " : "planes ") + std::to_string(count),
          Matrix::bitplanes(planes.bytes(), scale.bytes(), offset.bytes(), out, in, count, group), std::move(dense)};
}

Case plain(Random& random, int64_t out, int64_t in, Store store) {
  std::vector<double> dense(static_cast<std::size_t>(out * in));
  Exact bytes = random_halves(random, out * in);
  if (store == Store::float32) bytes = Exact(out * in * 4);
  for (int64_t i = 0; i < out * in; ++i) {
    float value = std::normal_distribution<float>()(random);
    uint32_t word;
    if (store == Store::float16) {
      dense[static_cast<std::size_t>(i)] = half(bytes, i);
      continue;
    }
    std::memcpy(&word, &value, 4);
    if (store == Store::bfloat16) word &= 0xffff0000u;
    std::memcpy(&value, &word, 4);
    dense[static_cast<std::size_t>(i)] = value;
    if (store == Store::float32)
      std::memcpy(bytes.data.get() + i * 4, &value, 4);
    else
      for (int j = 0; j < 2; ++j) bytes.data[i * 2 + j] = static_cast<uint8_t>(word >> (16 + 8 * j));
  }
  return {"plain", Matrix::dense(bytes.bytes(), store, out, in), std::move(dense)};
}

double plain_value(const Exact& bytes, int64_t index, Store store) {
  if (store == Store::float16) return half(bytes, index);
  uint32_t word = 0;
  if (store == Store::float32)
    std::memcpy(&word, bytes.data.get() + index * 4, 4);
  else
    word = static_cast<uint32_t>(bytes.data[index * 2] | bytes.data[index * 2 + 1] << 8) << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

// Numbers of this type, none of them infinite.
Exact random_plain(Random& random, int64_t n, Store store) {
  if (store == Store::float16) return random_halves(random, n);
  const int64_t each = store == Store::float32 ? 4 : 2;
  Exact made(n * each);
  for (int64_t i = 0; i < n; ++i) {
    const float value = std::normal_distribution<float>()(random);
    const auto* const word = reinterpret_cast<const uint8_t*>(&value);
    std::memcpy(made.data.get() + i * each, word + 4 - each, static_cast<std::size_t>(each));
  }
  return made;
}

Case masked(Random& random, int64_t out, int64_t in, Store store) {
  const int64_t width = width_of(in, 1), share = draw(random, 0, 10);
  Exact bitmap = random_bytes(random, out * width);  // the bits behind a row say nothing
  int64_t kept = 0;
  for (int64_t r = 0; r < out; ++r)
    for (int64_t c = 0; c < in; ++c) {
      uint8_t& byte = bitmap.data[r * width + c / 8];
      const bool stays = draw(random, 0, 9) < share;
      byte = static_cast<uint8_t>((byte & ~(1 << c % 8)) | stays << c % 8);
      kept += stays;
    }
  const Exact values = random_plain(random, kept, store);
  std::vector<double> dense;
  for (int64_t r = 0, next = 0; r < out; ++r)
    for (int64_t c = 0; c < in; ++c) dense.push_back(code(bitmap, r, width, 1, c) ? plain_value(values, next++, store) : 0.0);
  return {"masked", Matrix::masked(values.bytes(), bitmap.bytes(), store, out, in), std::move(dense)};
}

void put_code(Exact& bytes, int64_t row, int64_t width, int64_t bits, int64_t index, int64_t value) {
  for (int64_t j = 0; j < bits; ++j) {
    const int64_t at = index * bits + j;
    uint8_t& byte = bytes.data[row * width + at / 8];
    byte = static_cast<uint8_t>((byte & ~(1 << at % 8)) | (value >> j & 1) << at % 8);
  }
}

int64_t bits_for(int64_t count) {
  int64_t bits = 1;
  while (int64_t{1} << bits < count) ++bits;
  return bits;
}

Case some_of(Random& random, int64_t out, int64_t m, int64_t groups, Store store) {
  const int64_t n = draw(random, 1, m - 1), in = m * groups, bits = bits_for(m), width = width_of(groups * n, bits);
  const Exact values = random_plain(random, out * groups * n, store);
  Exact positions = random_bytes(random, out * width);
  std::vector<double> dense(static_cast<std::size_t>(out * in), 0.0);
  for (int64_t r = 0; r < out; ++r)
    for (int64_t g = 0; g < groups; ++g) {
      int64_t chosen = 0;
      for (int64_t p = 0; p < m; ++p) {
        if (draw(random, 0, m - p - 1) >= n - chosen) continue;
        put_code(positions, r, width, bits, g * n + chosen, p);
        dense[static_cast<std::size_t>(r * in + g * m + p)] = plain_value(values, (r * groups + g) * n + chosen++, store);
      }
    }
  return {"some of " + std::to_string(m), Matrix::some_of(values.bytes(), positions.bytes(), store, out, in, n, m), dense};
}

Case codebook(Random& random, int64_t out, int64_t dim, int64_t count, int64_t group) {
  const int64_t in = dim * count, books = draw(random, 1, 3), groups = group ? in / group : 1;
  const int64_t most[] = {16, 256, 32, 5};
  const int64_t entries = draw(random, 2, most[draw(random, 0, 3)]), bits = bits_for(entries), width = width_of(count, bits);
  Exact codes = random_bytes(random, books * out * width);
  const Exact book = random_halves(random, books * entries * dim), scale = random_halves(random, out * groups);
  for (int64_t r = 0; r < books * out; ++r)
    for (int64_t v = 0; v < count; ++v) put_code(codes, r, width, bits, v, draw(random, 0, entries - 1));
  std::vector<double> dense;
  for (int64_t r = 0; r < out; ++r)
    for (int64_t c = 0; c < in; ++c) {
      float w = 0;
      for (int64_t b = 0; b < books; ++b)
        w += static_cast<float>(half(book, (b * entries + code(codes, b * out + r, width, bits, c / dim)) * dim + c % dim));
      dense.push_back(group ? w * static_cast<float>(half(scale, r * groups + c / group)) : w);
    }
  return {"codebook of " + std::to_string(books) + " x " + std::to_string(entries) + " x " + std::to_string(dim),
          Matrix::codebook(codes.bytes(), book.bytes(), group ? scale.bytes() : Bytes{}, out, in, books, entries, dim,
                           group ? group : in),
          std::move(dense)};
}

// Largest error of a row, in units of sum |w| max |x| (integers round relative to the largest of a block) or sum |w x|.
void check(Random& random, const Case& c, int64_t tokens, const Kernels& k, Activations activations, int threads,
           bool with_bias) {
  const int64_t out = c.matrix.tiles().out, in = c.matrix.tiles().in, guard = 40;
  std::unique_ptr<float[]> x(new float[static_cast<std::size_t>(tokens * in)]), bias(new float[static_cast<std::size_t>(out)]);
  for (int64_t i = 0; i < tokens * in; ++i) x[i] = std::normal_distribution<float>()(random);
  if (c.matrix.tiles().store == Store::bfloat16 && draw(random, 0, 1)) {  // numbers that are bfloat16 themselves go another way
    for (int64_t i = 0; i < tokens * in; ++i) {
      uint32_t word;
      std::memcpy(&word, &x[i], 4);
      word &= 0xffff0000u;
      std::memcpy(&x[i], &word, 4);
    }
  }
  for (int64_t i = 0; i < out; ++i) bias[i] = std::normal_distribution<float>()(random);
  std::vector<float> y(static_cast<std::size_t>(tokens * out + 2 * guard), std::nanf(""));
  linear(c.matrix, x.get(), tokens, with_bias ? bias.get() : nullptr, y.data() + guard, activations, k, threads);

  const bool exact = activations == Activations::exact || c.matrix.tiles().store != Store::codes;
  const double allowed = exact ? 1e-6 : activations == Activations::int16 ? 1e-4 : 1e-2;
  double worst = 0;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t r = 0; r < out; ++r) {
      double sum = with_bias ? bias[r] : 0, size = 1e-30 + std::fabs(sum), largest = 0;
      for (int64_t i = 0; i < in; ++i) {
        const double w = c.dense[static_cast<std::size_t>(r * in + i)], a = x[t * in + i];
        sum += w * a;
        size += std::fabs(w * a);
        largest = std::max(largest, std::fabs(a));
      }
      if (!exact)
        for (int64_t i = 0; i < in; ++i) size += std::fabs(c.dense[static_cast<std::size_t>(r * in + i)]) * largest;
      const double error = std::fabs(sum - y[static_cast<std::size_t>(guard + t * out + r)]) / size;
      worst = error >= 0 ? std::max(worst, error) : INFINITY;
    }
  bool guarded = true;
  for (int64_t i = 0; i < guard; ++i)
    guarded = guarded && std::isnan(y[static_cast<std::size_t>(i)]) && std::isnan(y[y.size() - 1 - static_cast<std::size_t>(i)]);
  const std::string what = c.name + " " + std::to_string(out) + " x " + std::to_string(in) + " group " +
                           std::to_string(c.matrix.tiles().group) + ", " + std::to_string(tokens) + " tokens, " + k.name +
                           ", activations " + std::to_string(static_cast<int>(activations));
  expect(worst <= allowed, what + ": error " + std::to_string(worst));
  expect(guarded, what + ": wrote outside of y");
}

void products(Random& random, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    const int64_t group = draw(random, 0, 2) ? draw(random, 1, 200) : int64_t{1} << draw(random, 3, 8);
    const int64_t out = draw(random, 1, 70), in = group * draw(random, 1, group > 64 ? 3 : 9);
    std::vector<Case> cases;
    for (int64_t bits = 2; bits <= 8; ++bits) cases.push_back(grouped(random, out, in, bits, group, draw(random, 0, 1)));
    for (const bool whole : {false, true}) cases.push_back(bitplanes(random, out, in, draw(random, 1, 8), group, whole));
    for (Store store : {Store::float32, Store::float16, Store::bfloat16}) cases.push_back(plain(random, out, in, store));
    for (Store store : {Store::float32, Store::float16, Store::bfloat16}) cases.push_back(masked(random, out, in, store));
    cases.push_back(some_of(random, out, draw(random, 0, 1) ? 4 : draw(random, 2, 256), draw(random, 1, 9),
                            static_cast<Store>(draw(random, 1, 3))));
    cases.push_back(codebook(random, out, 1, in, draw(random, 0, 1) ? group : 0));
    const int64_t dim = draw(random, 0, 9) ? draw(random, 0, 1) ? 8 : draw(random, 2, 40) : draw(random, 200, 600);
    cases.push_back(codebook(random, out, dim, draw(random, 1, 50), 0));
    cases.push_back(codebook(random, out, dim, 6, 3 * (dim % 2 ? dim : dim / 2)));  // groups may end inside of a run
    for (const Case& c : cases)
      for (const std::string& name : instruction_sets())
        for (Activations activations : {Activations::exact, Activations::int8, Activations::int16})
          check(random, c, draw(random, 0, 1) ? 1 : draw(random, 2, 19), kernels(name), activations,
                static_cast<int>(draw(random, 1, 3)), draw(random, 0, 1));
  }
}

// float32 becomes the nearest bfloat16; one token that is 1 at a column reads it back.
void narrowed(Random& random) {
  const int64_t out = draw(random, 1, 40), in = draw(random, 1, 40);
  std::vector<float> weight(static_cast<std::size_t>(out * in)), x(static_cast<std::size_t>(in)), y(static_cast<std::size_t>(out));
  for (float& w : weight) w = std::normal_distribution<float>()(random);
  const Bytes bytes{weight.data(), out * in * 4};
  const Matrix matrix = Matrix::bfloats(bytes, Store::float32, out, in);
  for (int64_t c = 0; c < in; ++c) {
    std::fill(x.begin(), x.end(), 0.0f);
    x[static_cast<std::size_t>(c)] = 1;
    linear(matrix, x.data(), 1, nullptr, y.data(), Activations::exact, kernels(""), 1);
    for (int64_t r = 0; r < out; ++r) {
      const double w = weight[static_cast<std::size_t>(r * in + c)];
      const double unit = std::ldexp(1.0, std::ilogb(w) - 7);
      expect(y[static_cast<std::size_t>(r)] == static_cast<float>(std::nearbyint(w / unit) * unit), "the nearest bfloat16");
    }
  }
  weight[0] = draw(random, 0, 1) ? 3.4e38f : NAN;
  refused("what bfloat16 cannot hold", [&] { Matrix::bfloats(bytes, Store::float32, out, in); });
}

// Sizes that lie: nothing may be read.
void damaged() {
  const Exact few(7);
  const Bytes b = few.bytes(), none{};
  constexpr int64_t huge = int64_t{1} << 31;
  refused("short codes", [&] { Matrix::grouped(b, b, none, 4, 64, 4, 32); });
  refused("short scale", [&] { Matrix::grouped(Exact(128).bytes(), b, none, 4, 64, 4, 32); });
  refused("short zero", [&] { Matrix::grouped(Exact(128).bytes(), Exact(16).bytes(), b, 4, 64, 4, 32); });
  refused("no codes", [&] { Matrix::grouped({nullptr, 128}, Exact(16).bytes(), none, 4, 64, 4, 32); });
  for (const int64_t bad : {int64_t{0}, int64_t{-1}, huge + 1, INT64_MAX, INT64_MIN}) {
    refused("out", [&] { Matrix::grouped(b, b, none, bad, 64, 4, 32); });
    refused("in", [&] { Matrix::bitplanes(b, b, b, 4, bad, 2, 32); });
    refused("group", [&] { Matrix::grouped(b, b, none, 4, 64, 4, bad); });
    refused("bits", [&] { Matrix::grouped(b, b, none, 4, 64, bad, 32); });
    refused("planes", [&] { Matrix::bitplanes(b, b, b, 4, 64, bad, 32); });
    refused("rows", [&] { Matrix::dense(b, Store::float32, bad, 64); });
  }
  refused("huge", [&] { Matrix::grouped(b, b, none, huge, huge, 8, 1); });
  refused("huge planes", [&] { Matrix::bitplanes(b, b, b, huge, huge, 8, 1); });
  refused("huge floats", [&] { Matrix::dense(b, Store::float32, huge, huge); });
  refused("short bfloats", [&] { Matrix::bfloats(b, Store::float32, 2, 2); });
  const Exact zeros(64);
  std::memset(zeros.data.get(), 0, 64);
  const Bytes z{zeros.data.get(), 64};
  for (const int64_t bad : {int64_t{0}, int64_t{-1}, huge + 1, INT64_MAX, INT64_MIN}) {
    refused("rows of a mask", [&] { Matrix::masked(b, b, Store::float32, bad, 8); });
    refused("columns of a mask", [&] { Matrix::masked(b, b, Store::float32, 7, bad); });
    refused("n", [&] { Matrix::some_of(b, b, Store::float16, 4, 64, bad, 4); });
    refused("m", [&] { Matrix::some_of(b, b, Store::float16, 4, 64, 1, bad); });
    refused("books", [&] { Matrix::codebook(z, z, none, 4, 8, bad, 16, 1, 8); });
    refused("entries", [&] { Matrix::codebook(z, z, none, 4, 8, 1, bad, 1, 8); });
    refused("dim", [&] { Matrix::codebook(z, z, none, 4, 8, 1, 16, bad, 8); });
    refused("group of a codebook", [&] { Matrix::codebook(z, z, z, 4, 8, 1, 16, 1, bad); });
  }
  refused("huge mask", [&] { Matrix::masked(b, b, Store::float32, huge, huge); });
  refused("huge pattern", [&] { Matrix::some_of(b, b, Store::float32, huge, huge, 1, 4); });
  refused("huge codebook", [&] { Matrix::codebook(z, z, none, huge, huge, 64, 256, 1, huge); });
  refused("fewer values than marks", [&] { Matrix::masked({z.data, 60}, {"\xff\xff", 2}, Store::float32, 2, 8); });
  refused("more values than marks", [&] { Matrix::masked(z, {"\xff\x7f", 2}, Store::float32, 2, 8); });
  refused("positions that repeat", [&] { Matrix::some_of(z, {z.data, 4}, Store::float32, 4, 8, 2, 4); });
  refused("positions beyond the pattern", [&] { Matrix::some_of({z.data, 8}, {"\x07", 1}, Store::float32, 1, 6, 1, 3); });
  refused("codes beyond the entries", [&] { Matrix::codebook({"\x37", 1}, {z.data, 20}, none, 1, 4, 1, 5, 2, 4); });
  refused("groups without scales", [&] { Matrix::codebook({z.data, 32}, {z.data, 32}, none, 4, 16, 1, 16, 1, 8); });
  refused("a codebook of another size", [&] { Matrix::codebook({z.data, 32}, {z.data, 30}, none, 4, 16, 1, 16, 1, 16); });
  for (const Store store : {Store::codes, Store::sparse, Store::books})
    refused("no type of numbers", [&] { Matrix::masked(z, {"\xff\xff", 2}, store, 2, 8); });
  refused("group that does not divide", [&] { Matrix::grouped(b, b, none, 4, 64, 4, 33); });
  refused("codes as plain", [&] { Matrix::dense(b, Store::codes, 1, 1); });
  refused("instruction set", [&] { kernels("sse9"); });
}

// Random sizes with buffers that are nearly right.
void fuzz(Random& random, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    const int64_t out = draw(random, -1, 40), in = draw(random, -1, 90), bits = draw(random, 0, 9), group = draw(random, -1, 40);
    const Exact a = random_bytes(random, draw(random, 0, 400)), b = random_halves(random, draw(random, 0, 90)),
                c = random_bytes(random, draw(random, 0, 90));
    const bool right = out > 0 && in > 0 && group > 0 && in % group == 0;
    const int64_t groups = right ? in / group : 0;
    auto attempt = [&](bool fits, const std::function<Matrix()>& make) {
      bool made = true;
      try {
        make();
      } catch (const std::invalid_argument&) {
        made = false;
      }
      expect(made == fits, "a weight whose sizes " + std::string(fits ? "fit was refused" : "disagree was taken"));
    };
    attempt(right && bits >= 2 && bits <= 8 && a.size == out * width_of(in, bits) && b.size == 2 * out * groups &&
                c.size == out * width_of(groups, bits),
            [&] { return Matrix::grouped(a.bytes(), b.bytes(), c.bytes(), out, in, bits, group); });
    const bool sparse = out > 0 && in > 0 && in % 4 == 0;
    attempt(sparse && a.size == out * in && c.size == out * width_of(in / 4, 2),
            [&] { return Matrix::some_of(a.bytes(), c.bytes(), Store::float32, out, in, 1, 4); });
    attempt(out > 0 && in > 0 && bits > 1 && bits < 9 && a.size == out * width_of(in, bits) && b.size == 2 << bits,
            [&] { return Matrix::codebook(a.bytes(), b.bytes(), {}, out, in, 1, int64_t{1} << bits, 1, in); });
    attempt(right && bits >= 1 && bits <= 8 && a.size == bits * out * width_of(in, 1) && b.size == 2 * out * groups * bits &&
                c.size == 2 * out * groups,
            [&] { return Matrix::bitplanes(a.bytes(), b.bytes(), c.bytes(), out, in, bits, group); });
  }
}

// Phases follow each other: everything of one is there when the next begins. Whether chunks shrink or not, none overlap.
void phases(int rounds) {
  Random random(3);
  for (int round = 0; round < rounds; ++round) {
    std::vector<Phase> plan;
    for (int64_t i = draw(random, 0, 6); i > 0; --i) plan.push_back({draw(random, 0, 90), draw(random, 1, 9), draw(random, 0, 1) == 1});
    std::vector<std::atomic<int64_t>> counted(plan.size() + 1), squares(plan.size() + 1);
    std::atomic<bool> right{true};
    Pool::shared().run_phases(static_cast<int>(draw(random, 1, 4)), plan.data(), static_cast<int>(plan.size()),
                              [&](int phase, int64_t begin, int64_t end, int) {
                                for (std::size_t i = 0; i < static_cast<std::size_t>(phase); ++i)
                                  right = right && counted[i] == plan[i].total;
                                counted[static_cast<std::size_t>(phase)] += end - begin;
                                squares[static_cast<std::size_t>(phase)] += end * end - begin * begin;
                              });
    for (std::size_t i = 0; i < plan.size(); ++i)
      right = right && counted[i] == plan[i].total && squares[i] == plan[i].total * plan[i].total;
    expect(right, "phases are done in order");
  }
}

// Every index once, whatever the number of threads, chunks and callers at the same time.
void pool(int rounds) {
  std::atomic<bool> right{true};
  auto caller = [&](unsigned seed) {
    Random random(seed);
    for (int round = 0; round < rounds; ++round) {
      const int64_t total = draw(random, 0, 50);
      std::vector<std::atomic<int>> seen(static_cast<std::size_t>(total));
      Pool::shared().run(static_cast<int>(draw(random, 1, 5)), total, draw(random, 0, 7), [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) seen[static_cast<std::size_t>(i)].fetch_add(1);
      });
      for (const auto& count : seen) right = right && count == 1;
      if (round % 100 == 0)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));  // long enough for the others to fall asleep
    }
  };
  std::thread other(caller, 1u);
  caller(2u);
  other.join();
  expect(right, "the pool does all work once");
}

}  // namespace

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 12;
  Random random(20240229);
  damaged();
  fuzz(random, 100 * rounds);
  pool(300 * rounds);
  phases(100 * rounds);
  passes_tests(random, rounds);
  session_tests(random, rounds);
  for (int round = 0; round < rounds; ++round) narrowed(random);
  products(random, rounds);
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
