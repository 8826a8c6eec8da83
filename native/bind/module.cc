// The Python face of the kernels. Arrays come in as NumPy arrays; their sizes are checked here and in Matrix.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <optional>
#include <stdexcept>
#include <string>

#include <nanobind/stl/optional.h>

#include "trimtab/linear.h"
#include "trimtab/pool.h"

namespace nb = nanobind;
using namespace trimtab;

void bind_session(nb::module_& module);
void bind_passes(nb::module_& module);

namespace {

using Flat = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tokens = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Result = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

Bytes bytes(const Flat& array) { return {array.data(), static_cast<int64_t>(array.shape(0))}; }

Matrix grouped(const Flat& codes, const Flat& scale, const std::optional<Flat>& zero, int64_t out, int64_t in, int64_t bits,
               int64_t group_size) {
  const Bytes c = bytes(codes), s = bytes(scale), z = zero ? bytes(*zero) : Bytes{};
  if (zero && !z.data) throw std::invalid_argument("zero is empty; leave it out where zero points are in the middle");
  const nb::gil_scoped_release unlocked;
  return Matrix::grouped(c, s, z, out, in, bits, group_size);
}

Matrix bitplanes(const Flat& planes, const Flat& scale, const Flat& offset, int64_t out, int64_t in, int64_t count,
                 int64_t group_size) {
  const Bytes p = bytes(planes), s = bytes(scale), o = bytes(offset);
  const nb::gil_scoped_release unlocked;
  return Matrix::bitplanes(p, s, o, out, in, count, group_size);
}

Store plain(const std::string& dtype) {
  if (dtype == "float32") return Store::float32;
  if (dtype == "float16") return Store::float16;
  if (dtype == "bfloat16") return Store::bfloat16;
  throw std::invalid_argument("dense holds float32, float16 or bfloat16, got " + dtype);
}

Matrix dense(const Flat& weight, const std::string& dtype, int64_t out, int64_t in) {
  const Bytes w = bytes(weight);
  const Store store = plain(dtype);
  const nb::gil_scoped_release unlocked;
  return Matrix::dense(w, store, out, in);
}

Matrix bfloats(const Flat& weight, const std::string& dtype, int64_t out, int64_t in) {
  const Bytes w = bytes(weight);
  const Store store = plain(dtype);
  const nb::gil_scoped_release unlocked;
  return Matrix::bfloats(w, store, out, in);
}

Matrix rounded(const Flat& weight, const std::string& dtype, int64_t out, int64_t in, int64_t bits, int64_t group_size) {
  const Bytes w = bytes(weight);
  const Store store = plain(dtype);
  const nb::gil_scoped_release unlocked;
  return Matrix::rounded(w, store, out, in, bits, group_size);
}

// Nothing survives in a matrix whose values are empty.
Matrix masked(const Flat& values, const Flat& bitmap, const std::string& dtype, int64_t out, int64_t in) {
  const Bytes v = bytes(values), b = bytes(bitmap);
  const Store store = plain(dtype);
  const nb::gil_scoped_release unlocked;
  return Matrix::masked(v, b, store, out, in);
}

Matrix some_of(const Flat& values, const Flat& positions, const std::string& dtype, int64_t out, int64_t in, int64_t n,
               int64_t m) {
  const Bytes v = bytes(values), p = bytes(positions);
  const Store store = plain(dtype);
  const nb::gil_scoped_release unlocked;
  return Matrix::some_of(v, p, store, out, in, n, m);
}

Matrix codebook(const Flat& codes, const Flat& book, const std::optional<Flat>& scale, int64_t out, int64_t in, int64_t books,
                int64_t entries, int64_t dim, int64_t group_size) {
  const Bytes c = bytes(codes), b = bytes(book), s = scale ? bytes(*scale) : Bytes{};
  if (scale && !s.data) throw std::invalid_argument("scale is empty; leave it out where there is none");
  const nb::gil_scoped_release unlocked;
  return Matrix::codebook(c, b, s, out, in, books, entries, dim, group_size);
}

std::string shape(const char* name, std::size_t rows, std::size_t columns) {
  return std::string(name) + " [" + std::to_string(rows) + ", " + std::to_string(columns) + "]";
}

void multiply(const Matrix& matrix, const Tokens& x, const Result& y, const std::optional<Floats>& bias, int digits,
              const std::string& instructions, int threads) {
  const Tiles& m = matrix.tiles();
  const auto out = static_cast<std::size_t>(m.out), in = static_cast<std::size_t>(m.in);
  if (x.shape(1) != in || y.shape(1) != out || x.shape(0) != y.shape(0))
    throw std::invalid_argument(shape("x", x.shape(0), x.shape(1)) + " and " + shape("y", y.shape(0), y.shape(1)) +
                                " do not fit " + shape("a weight", out, in));
  if (bias && bias->shape(0) != out)
    throw std::invalid_argument("bias has " + std::to_string(bias->shape(0)) + " entries, the weight has " + std::to_string(out) +
                                " rows");
  if (digits < 0 || digits > 2) throw std::invalid_argument("digits must be 0 (exact), 1 or 2");
  const Kernels& chosen = kernels(instructions);
  const auto tokens = static_cast<int64_t>(x.shape(0));
  const float *from = x.data(), *added = bias ? bias->data() : nullptr;
  float* const to = y.data();
  const nb::gil_scoped_release unlocked;
  linear(matrix, from, tokens, added, to, static_cast<Activations>(digits), chosen, threads);
}

uint64_t read_buffer(const Flat& buffer, const std::string& instructions, int threads) {
  const Kernels& chosen = kernels(instructions);
  const int64_t lines = static_cast<int64_t>(buffer.shape(0)) / kVector;
  const uint8_t* const data = buffer.data();
  std::atomic<uint64_t> total{0};
  const nb::gil_scoped_release unlocked;
  Pool::shared().run(threads, lines, lines / (threads * 8) + 1, [&](int64_t begin, int64_t end, int) {
    total.fetch_add(chosen.read(data + begin * kVector, (end - begin) * kVector));
  });
  return total.load();
}

const char* kind(const Matrix& m) {
  switch (m.tiles().store) {
    case Store::codes:
      return m.tiles().offset == Offset::free ? "bitplanes" : "grouped";
    case Store::float32:
      return "float32";
    case Store::float16:
      return "float16";
    case Store::sparse:
      return "sparse";
    case Store::books:
      return "codebook";
    default:
      return "bfloat16";
  }
}

}  // namespace

// Arrays are taken as they are or not at all: a converted copy would cost time, and one of y would be thrown away.
NB_MODULE(trimtab_native, module) {
  module.attr("INTERFACE") = TRIMTAB_INTERFACE;
  nb::class_<Matrix>(module, "Matrix")
      .def_static("grouped", grouped, nb::arg("codes").noconvert(), nb::arg("scale").noconvert(),
                  nb::arg("zero").none().noconvert(), nb::arg("out"), nb::arg("inputs"), nb::arg("bits"), nb::arg("group_size"))
      .def_static("bitplanes", bitplanes, nb::arg("planes").noconvert(), nb::arg("scale").noconvert(),
                  nb::arg("offset").noconvert(), nb::arg("out"), nb::arg("inputs"), nb::arg("count"), nb::arg("group_size"))
      .def_static("dense", dense, nb::arg("weight").noconvert(), nb::arg("dtype"), nb::arg("out"), nb::arg("inputs"))
      .def_static("bfloats", bfloats, nb::arg("weight").noconvert(), nb::arg("dtype"), nb::arg("out"), nb::arg("inputs"))
      .def_static("rounded", rounded, nb::arg("weight").noconvert(), nb::arg("dtype"), nb::arg("out"), nb::arg("inputs"),
                  nb::arg("bits"), nb::arg("group_size"))
      .def_static("masked", masked, nb::arg("values").noconvert(), nb::arg("bitmap").noconvert(), nb::arg("dtype"),
                  nb::arg("out"), nb::arg("inputs"))
      .def_static("some_of", some_of, nb::arg("values").noconvert(), nb::arg("positions").noconvert(), nb::arg("dtype"),
                  nb::arg("out"), nb::arg("inputs"), nb::arg("n"), nb::arg("m"))
      .def_static("codebook", codebook, nb::arg("codes").noconvert(), nb::arg("codebook").noconvert(),
                  nb::arg("scale").none().noconvert(), nb::arg("out"), nb::arg("inputs"), nb::arg("books"), nb::arg("entries"),
                  nb::arg("dim"), nb::arg("group_size"))
      .def_prop_ro("shape", [](const Matrix& m) { return nb::make_tuple(m.tiles().out, m.tiles().in); })
      .def_prop_ro("nbytes", &Matrix::bytes)
      .def_prop_ro("kind", kind);
  module.def("linear", multiply, nb::arg("matrix"), nb::arg("x").noconvert(), nb::arg("y").noconvert(),
             nb::arg("bias").none().noconvert(), nb::arg("digits"), nb::arg("instructions"), nb::arg("threads"));
  module.def("read", read_buffer, nb::arg("buffer").noconvert(), nb::arg("instructions"), nb::arg("threads"));
  module.def("instruction_sets", instruction_sets);
  module.def("cores", cores);
  bind_session(module);
  bind_passes(module);
}
