// The Python face of models and sessions. Every size is checked in Linear, Model::check and Session; what is checked here is only
// what Python could hand in that C++ cannot express.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include <nanobind/stl/optional.h>

#include "trimtab/session.h"

namespace nb = nanobind;
using namespace trimtab;

namespace {

using Flat = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

Numbers numbers(const std::optional<Floats>& array) {
  return array ? Numbers(array->data(), array->data() + array->shape(0)) : Numbers();
}

template <class Value>
Value named(const std::string& name, const char* what, std::initializer_list<std::pair<const char*, Value>> values) {
  std::string known;
  for (const auto& [each, value] : values) {
    if (name == each) return value;
    known += (known.empty() ? "" : ", ") + std::string(each);
  }
  throw std::invalid_argument(std::string(what) + " must be one of " + known + ", got '" + name + "'");
}

Norm norm(const std::string& kind, const Floats& weight, const std::optional<Floats>& bias, float epsilon) {
  Norm made;
  made.there = true;
  made.centred = named<bool>(kind, "norm", {{"rms", false}, {"layer", true}});
  made.weight = numbers(weight);
  made.bias = numbers(bias);
  made.epsilon = epsilon;
  return made;
}

Linear rotated(const Linear& inner, int64_t block, int64_t base, const std::optional<Floats>& matrix,
               const std::optional<Floats>& signs) {
  return Linear::rotated(inner, {block, base, numbers(signs), numbers(matrix)});
}

Linear with_bias(Linear weight, const Floats& bias) {
  weight.bias = numbers(bias);
  return weight;
}

// Keeps the array alive as long as the model; it may be let go of on any thread.
Table table(const Flat& data, const std::string& dtype, int64_t rows, int64_t width) {
  Table made;
  made.store = named<Store>(dtype, "dtype",
                            {{"float32", Store::float32}, {"float16", Store::float16}, {"bfloat16", Store::bfloat16}});
  const int64_t each = made.store == Store::float32 ? 4 : 2;
  constexpr int64_t most = int64_t{1} << 31;
  if (rows < 1 || width < 1 || rows > most || width > most || static_cast<int64_t>(data.shape(0)) / each / width != rows ||
      static_cast<int64_t>(data.shape(0)) != rows * width * each)
    throw std::invalid_argument("a table of " + std::to_string(rows) + " x " + std::to_string(width) + " " + dtype +
                                " does not have " + std::to_string(data.shape(0)) + " bytes");
  made.data = data.data();
  made.rows = rows;
  made.width = width;
  made.owner = std::shared_ptr<const void>(new Flat(data), [](const void* array) {
    const nb::gil_scoped_acquire locked;
    delete static_cast<const Flat*>(array);
  });
  return made;
}

std::shared_ptr<Session> session(const Model& model, const std::string& instructions, int threads, int digits,
                                 const std::string& kept, int64_t chunk) {
  if (digits < 0 || digits > 2) throw std::invalid_argument("digits must be 0 (exact), 1 or 2");
  Options options;
  options.threads = threads;
  options.activations = static_cast<Activations>(digits);
  options.kept = named<Kept>(kept, "kv", {{"float32", Kept::float32}, {"bfloat16", Kept::bfloat16}, {"int8", Kept::int8}});
  options.chunk = chunk;
  const Kernels& chosen = kernels(instructions);
  // A copy, which shares matrices and tables: a session relies on a model that does not change.
  return std::make_shared<Session>(std::make_shared<const Model>(model), chosen, options);
}

void read_tokens(Session& session, const Ids& ids, const std::optional<Logits>& logits, bool every) {
  const auto vocabulary = static_cast<std::size_t>(session.model().vocabulary());
  const std::size_t rows = every ? ids.shape(0) : 1;
  if (every && !logits) throw std::invalid_argument("logits of every position need a place");
  if (logits && (logits->shape(0) != rows || logits->shape(1) != vocabulary))
    throw std::invalid_argument("logits must be [" + std::to_string(rows) + ", " + std::to_string(vocabulary) + "]");
  const int32_t* const from = ids.data();
  float* const to = logits ? logits->data() : nullptr;
  const auto count = static_cast<int64_t>(ids.shape(0));
  const nb::gil_scoped_release unlocked;
  session.read(from, count, to, every);
}

std::vector<int32_t> make_tokens(Session& session, Sampler& sampler, int64_t count, const std::vector<int32_t>& stop) {
  std::vector<int32_t> made;
  const nb::gil_scoped_release unlocked;
  session.generate(sampler, count, stop, made);
  return made;
}

nb::dict stages(const Session& session) {
  static const char* const names[] = {"embedding", "inputs", "q k v", "attention", "output", "gate and up",
                                      "down",      "head",   "choice", "waiting"};
  static_assert(std::size(names) == kStages + 1);
  nb::dict made;
  const std::vector<double> seconds = session.stages();
  for (std::size_t i = 0; i < seconds.size(); ++i) made[names[i]] = seconds[i];
  return made;
}

std::vector<std::vector<int32_t>> make_together(const std::vector<std::shared_ptr<Session>>& sessions,
                                                const std::vector<std::shared_ptr<Sampler>>& samplers, int64_t count,
                                                const std::vector<int32_t>& stop) {
  std::vector<Session*> each;
  std::vector<Sampler*> theirs;
  for (const auto& session : sessions) each.push_back(session.get());
  for (const auto& sampler : samplers) theirs.push_back(sampler.get());
  std::vector<std::vector<int32_t>> made;
  const nb::gil_scoped_release unlocked;
  Session::generate_together(each, theirs, count, stop, made);
  return made;
}

}  // namespace

void bind_session(nb::module_& module) {
  nb::class_<Norm>(module, "Norm")
      .def_static("of", norm, nb::arg("kind"), nb::arg("weight").noconvert(), nb::arg("bias").none().noconvert(),
                  nb::arg("epsilon"));
  nb::class_<Linear>(module, "Linear")
      .def_static("leaf", [](std::shared_ptr<Matrix> matrix) { return Linear::leaf(std::move(matrix)); }, nb::arg("matrix"))
      .def_static("sum", [](std::vector<Linear> parts) { return Linear::sum(std::move(parts)); }, nb::arg("parts"))
      .def_static("chain", [](std::vector<Linear> factors) { return Linear::chain(std::move(factors)); }, nb::arg("factors"))
      .def_static("rotated", rotated, nb::arg("inner"), nb::arg("block"), nb::arg("base"), nb::arg("matrix").none().noconvert(),
                  nb::arg("signs").none().noconvert())
      .def("with_bias", with_bias, nb::arg("bias").noconvert())
      .def_prop_ro("shape", [](const Linear& l) { return nb::make_tuple(l.out, l.in); })
      .def_prop_ro("nbytes", &Linear::bytes);
  nb::class_<Layer>(module, "Layer")
      .def(nb::init<>())
      .def_rw("before_attention", &Layer::before_attention)
      .def_rw("after_attention", &Layer::after_attention)
      .def_rw("before_mlp", &Layer::before_mlp)
      .def_rw("after_mlp", &Layer::after_mlp)
      .def_rw("q", &Layer::q)
      .def_rw("k", &Layer::k)
      .def_rw("v", &Layer::v)
      .def_rw("o", &Layer::o)
      .def_rw("q_norm", &Layer::q_norm)
      .def_rw("k_norm", &Layer::k_norm)
      .def_rw("wide_norms", &Layer::wide_norms)
      .def_rw("heads", &Layer::heads)
      .def_rw("kv_heads", &Layer::kv_heads)
      .def_rw("dim", &Layer::dim)
      .def_rw("scale", &Layer::scale)
      .def_rw("softcap", &Layer::softcap)
      .def_rw("window", &Layer::window)
      .def_rw("rope", &Layer::rope)
      .def_rw("gate", &Layer::gate)
      .def_rw("up", &Layer::up)
      .def_rw("down", &Layer::down)
      .def_rw("parallel", &Layer::parallel)
      .def_prop_rw(
          "curve", [](const Layer& l) { return static_cast<int>(l.curve); },
          [](Layer& l, const std::string& name) {
            l.curve = named<Curve>(
                name, "curve",
                {{"silu", Curve::silu}, {"gelu", Curve::gelu}, {"gelu_tanh", Curve::gelu_tanh}, {"relu", Curve::relu}});
          });
  nb::class_<Model>(module, "Model")
      .def(nb::init<>())
      .def("set_embedding",
           [](Model& m, const Flat& data, const std::string& dtype, int64_t rows, int64_t width) {
             m.embedding = table(data, dtype, rows, width);
           },
           nb::arg("data").noconvert(), nb::arg("dtype"), nb::arg("rows"), nb::arg("width"))
      .def("set_positions",
           [](Model& m, const Flat& data, const std::string& dtype, int64_t rows, int64_t width, int64_t first) {
             m.positions = table(data, dtype, rows, width);
             m.first_position = first;
           },
           nb::arg("data").noconvert(), nb::arg("dtype"), nb::arg("rows"), nb::arg("width"), nb::arg("first"))
      .def("add_rope",
           [](Model& m, const Floats& frequency, float factor) { m.ropes.push_back({numbers(frequency), factor}); },
           nb::arg("frequency").noconvert(), nb::arg("factor"))
      .def("add_layer", [](Model& m, const Layer& layer) { m.layers.push_back(layer); }, nb::arg("layer"))
      .def_rw("embedding_scale", &Model::embedding_scale)
      .def_rw("last", &Model::last)
      .def_rw("head", &Model::head)
      .def_rw("logit_softcap", &Model::logit_softcap)
      .def_rw("logit_scale", &Model::logit_scale)
      .def_rw("context", &Model::context)
      .def_prop_ro("nbytes", &Model::bytes)
      .def_prop_ro("vocabulary", &Model::vocabulary)
      .def("check", &Model::check);
  nb::class_<Sampler>(module, "Sampler")
      .def("__init__",
           [](Sampler* made, float temperature, int64_t top_k, float top_p, float repetition_penalty, uint64_t seed) {
             new (made) Sampler({temperature, top_k, top_p, repetition_penalty, seed});
           },
           nb::arg("temperature"), nb::arg("top_k"), nb::arg("top_p"), nb::arg("repetition_penalty"), nb::arg("seed"));
  nb::class_<Session>(module, "Session")
      .def(nb::new_(&session), nb::arg("model"), nb::arg("instructions"), nb::arg("threads"), nb::arg("digits"), nb::arg("kv"),
           nb::arg("chunk"))
      .def("read", read_tokens, nb::arg("ids").noconvert(), nb::arg("logits").none().noconvert(), nb::arg("every"))
      .def("generate", make_tokens, nb::arg("sampler"), nb::arg("count"), nb::arg("stop"))
      .def("another", [](const Session& s) { return std::shared_ptr<Session>(s.another()); })
      .def("time_stages", &Session::time_stages, nb::arg("on"))
      .def_prop_ro("stages", stages)
      .def("truncate", &Session::truncate, nb::arg("length"))
      .def_prop_ro("length", &Session::length)
      .def_prop_ro("threads", [](const Session& s) { return s.options().threads; })
      .def_prop_ro("cache_bytes", &Session::cache_bytes);
  module.def("together", make_together, nb::arg("sessions"), nb::arg("samplers"), nb::arg("count"), nb::arg("stop"));
}
