// The Python face of grams and attention in bfloat16. Such numbers come in as NumPy arrays of their bits.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>

#include "trimtab/linear.h"
#include "trimtab/passes.h"

namespace nb = nanobind;
using namespace trimtab;

namespace {

using Tokens = nb::ndarray<const uint16_t, nb::ndim<2>, nb::device::cpu>;
using Total = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<const uint16_t, nb::ndim<4>, nb::device::cpu>;
using Result = nb::ndarray<uint16_t, nb::ndim<4>, nb::device::cpu>;

int64_t size(std::size_t n) { return static_cast<int64_t>(n); }

template <class Number, class Array>
Heads<Number> heads(const Array& array, const char* name) {
  if (array.shape(3) > 1 && array.stride(3) != 1)
    throw std::invalid_argument(std::string(name) + ": the numbers of a row do not lie side by side");
  return {array.data(), array.stride(0), array.stride(1), array.stride(2)};
}

void add_gram(const Total& total, const Tokens& x, const std::string& instructions, int threads) {
  const int64_t tokens = size(x.shape(0)), columns = size(x.shape(1));
  if (size(total.shape(0)) != columns || size(total.shape(1)) != columns)
    throw std::invalid_argument("total must be [" + std::to_string(columns) + ", " + std::to_string(columns) + "]");
  if (columns > 1 && x.stride(1) != 1) throw std::invalid_argument("x: the numbers of a token do not lie side by side");
  const Passes& chosen = passes(kernels(instructions));
  const uint16_t* const from = x.data();
  const int64_t row = x.stride(0);
  float* const to = total.data();
  const nb::gil_scoped_release unlocked;
  gram(from, row, tokens, columns, to, chosen, threads);
}

void attend(const Rows& q, const Rows& k, const Rows& v, const Result& out, float scale, bool causal,
            const std::string& instructions, int threads) {
  WindowAttention call{heads<const uint16_t>(q, "q"), heads<const uint16_t>(k, "k"), heads<const uint16_t>(v, "v"),
                       heads<uint16_t>(out, "out"), size(q.shape(0)), size(q.shape(1)), size(k.shape(1)), size(q.shape(2)),
                       size(k.shape(2)), size(q.shape(3)), size(v.shape(3)), scale, causal};
  bool fits = k.shape(0) == q.shape(0) && v.shape(0) == q.shape(0) && out.shape(0) == q.shape(0) && k.shape(3) == q.shape(3) &&
              v.shape(1) == k.shape(1) && v.shape(2) == k.shape(2) && out.shape(1) == q.shape(1) &&
              out.shape(2) == q.shape(2) && out.shape(3) == v.shape(3);
  fits = fits && call.batches > 0 && call.queries > 0 && call.keys > 0 && call.kept_heads > 0 && call.heads > 0 &&
         call.heads % call.kept_heads == 0;
  if (!fits) throw std::invalid_argument("q, k, v and out do not fit each other");
  if (call.dim <= 0 || call.value_dim <= 0 || call.dim % kRows || call.value_dim % kRows)
    throw std::invalid_argument("the width of a head must be a multiple of 16");
  const Passes& chosen = passes(kernels(instructions));
  const nb::gil_scoped_release unlocked;
  attention(call, chosen, threads);
}

}  // namespace

void bind_passes(nb::module_& module) {
  module.def("gram", add_gram, nb::arg("total").noconvert(), nb::arg("x").noconvert(), nb::arg("instructions"),
             nb::arg("threads"));
  module.def("attention", attend, nb::arg("q").noconvert(), nb::arg("k").noconvert(), nb::arg("v").noconvert(),
             nb::arg("out").noconvert(), nb::arg("scale"), nb::arg("causal"), nb::arg("instructions"), nb::arg("threads"));
  module.def("multiplies_bfloats", multiplies_bfloats);
}
