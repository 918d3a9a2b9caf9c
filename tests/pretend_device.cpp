// A torch backend on the CPU's memory that refuses what CUDA would refuse. See pretend_device.py.
//
// Every operation ends in `on_the_cpu`: arguments are checked, seen as CPU tensors of the same memory, handed to the
// CPU's kernel, and what comes back is seen as tensors of the device. A few that make or resize memory are written out.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace {

using at::Tensor;
using c10::Device;
constexpr auto KIND = c10::DeviceType::PrivateUse1;

int device_count = 1;
thread_local c10::DeviceIndex current_device = 0;

// -- who is told of waits ----------------------------------------------------------------------------------------------

std::atomic<bool> is_recorded{false};
py::object* recorder = nullptr;

void record(const std::string& what) {
  if (!is_recorded) return;
  py::gil_scoped_acquire gil;
  if (recorder) (*recorder)(what);
}

// -- memory, devices and streams: there is one of each kind, and nothing is ever late ------------------------------------

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes ? std::aligned_alloc(64, (bytes + 63) / 64 * 64) : nullptr;
    return {data, data, &std::free, Device(KIND, current_device)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
} memory;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return KIND; }
  Device getDevice() const override { return {KIND, current_device}; }
  void setDevice(Device to) const override {
    TORCH_CHECK(to.index() < device_count, "there is no device ", to, ": ", device_count, " are here");
    uncheckedSetDevice(to);
  }
  void uncheckedSetDevice(Device to) const noexcept override {
    if (to.index() >= 0) current_device = to.index();
  }
  Device exchangeDevice(Device to) const override {
    auto before = getDevice();
    setDevice(to);
    return before;
  }
  c10::DeviceIndex deviceCount() const noexcept override { return device_count; }
  c10::Stream getStream(Device of) const override { return c10::Stream(c10::Stream::DEFAULT, of); }
  c10::Stream getDefaultStream(Device of) const override { return getStream(of); }
  c10::Stream getNewStream(Device of, int) const override { return getStream(of); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return getStream(stream.device()); }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void record(void** event, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {
    static int any;
    *event = &any;
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};

// A generator of the device draws what the CPU's draws from the same seed.
struct Random final : c10::GeneratorImpl {
  Random(c10::DeviceIndex index, at::Generator of_cpu)
      : c10::GeneratorImpl(Device(KIND, index), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)), drawn(of_cpu) {}
  void set_current_seed(uint64_t seed) override { drawn.set_current_seed(seed); }
  uint64_t current_seed() const override { return drawn.current_seed(); }
  uint64_t seed() override { return drawn.seed(); }
  void set_offset(uint64_t) override {}
  uint64_t get_offset() const override { return 0; }
  void set_state(const c10::TensorImpl& state) override { drawn.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return drawn.unsafeGetGeneratorImpl()->get_state(); }
  Random* clone_impl() const override { return new Random(device().index(), drawn.clone()); }
  at::Generator drawn;
};

void resize_storage(const c10::Storage& storage, size_t bytes) {
  auto data = memory.allocate(bytes);
  if (storage.nbytes()) std::memcpy(data.get(), storage.data(), std::min(bytes, storage.nbytes()));
  storage.set_data_ptr_noswap(std::move(data));
  storage.set_nbytes(bytes);
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return device_count; }
  c10::DeviceIndex getCurrentDevice() const override { return current_device; }
  void setCurrentDevice(c10::DeviceIndex to) const override { current_device = to; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex to) const override {
    auto before = current_device;
    current_device = to;
    return before;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex to) const override { return exchangeDevice(to); }
  at::Generator getNewGenerator(c10::DeviceIndex index) const override {
    return at::make_generator<Random>(index < 0 ? current_device : index, at::detail::createCPUGenerator());
  }
  at::Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(c10::DeviceType::CPU); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    resize_storage(storage, bytes);
  }
} hooks;

// -- the same memory, seen from either side ------------------------------------------------------------------------------

bool is_ours(const Tensor& t) { return t.defined() && t.device().type() == KIND; }

void copy_marks(const Tensor& from, Tensor& to) {
  if (from.is_conj()) to._set_conj(true);
  if (from.is_neg()) to._set_neg(true);
}

Tensor seen_from_cpu(const Tensor& t) {
  auto storage = t.storage();  // is kept alive by what is returned
  auto options = t.options().device(c10::kCPU).requires_grad(false).pinned_memory(false);
  auto made = at::from_blob(t.numel() ? t.data_ptr() : nullptr, t.sizes(), t.strides(), [storage](void*) {}, options);
  copy_marks(t, made);
  if (t.unsafeGetTensorImpl()->is_wrapped_number()) made.unsafeGetTensorImpl()->set_wrapped_number(true);
  return made;
}

Tensor seen_from_device(const Tensor& t, Device device) {
  if (!t.defined() || t.device() == device) return t;
  auto* kept = new c10::Storage(t.storage());
  c10::DataPtr data(const_cast<void*>(kept->data()), kept, [](void* s) { delete static_cast<c10::Storage*>(s); }, device);
  auto storage = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), kept->nbytes(), std::move(data), &memory, true);
  auto made = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), t.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  copy_marks(t, made);
  return made;
}

template <class F>
c10::IValue with_tensors(const c10::IValue& value, const F& change) {
  if (value.isTensor()) return value.toTensor().defined() ? c10::IValue(change(value.toTensor())) : value;
  if (value.isTensorList()) {
    c10::List<Tensor> made;
    for (const Tensor& t : value.toTensorVector()) made.push_back(t.defined() ? change(t) : t);
    return made;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> made;
    for (const auto& t : value.toOptionalTensorVector())
      made.push_back(t.has_value() && t->defined() ? std::optional<Tensor>(change(*t)) : t);
    return made;
  }
  return value;
}

// -- what CUDA refuses, and what makes the host wait for it ----------------------------------------------------------------

// Kernels of CUDA that take no number on the CPU (a tensor without dimensions) beside tensors of the device.
const std::set<std::string> TAKES_NO_CPU_NUMBER = {
    "aten::addmm",        "aten::baddbmm",         "aten::bmm",         "aten::bucketize",
    "aten::cat",          "aten::dot",             "aten::embedding",   "aten::equal",
    "aten::gather",       "aten::index_add",       "aten::index_copy",  "aten::index_select",
    "aten::masked_scatter", "aten::masked_scatter_", "aten::masked_select", "aten::mm",
    "aten::mv",           "aten::native_group_norm", "aten::native_layer_norm", "aten::scatter",
    "aten::scatter_add"};
const std::set<std::string> TAKES_CPU_INDICES = {"aten::index",          "aten::index_put",     "aten::index_put_",
                                                 "aten::_index_put_impl_", "aten::_unsafe_index", "aten::_unsafe_index_put"};
// The size of what they return is known to the device only.
const std::set<std::string> ASKS_FOR_A_SIZE = {"aten::bincount",      "aten::equal",       "aten::masked_select",
                                               "aten::nonzero",       "aten::_unique2",    "aten::unique_consecutive",
                                               "aten::unique_dim"};

void check(const Tensor& t, Device device, const std::string& operation, const std::string& argument, bool is_index) {
  bool is_number = t.device().is_cpu() && t.dim() == 0 && !TAKES_NO_CPU_NUMBER.count(operation);
  TORCH_CHECK(t.device() == device || is_number || (is_index && t.device().is_cpu()),
              "Expected all tensors to be on the same device, but found at least two devices, ", device, " and ",
              t.device(), "! (when checking argument ", argument, " in method ", operation, ")");
  if (is_index && t.device().is_cpu()) record("an index from the CPU");
  // a mask of booleans is an index of unknown size
  if (is_index && is_ours(t) && t.scalar_type() == at::kBool) record("a size is asked for");
}

void on_the_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto& arguments = schema.arguments();
  const auto& name = schema.name();
  std::vector<c10::IValue> given(stack->end() - arguments.size(), stack->end());

  std::optional<Device> device;
  for (const auto& value : given) {
    with_tensors(value, [&](const Tensor& t) {
      if (is_ours(t) && !device) device = t.device();
      return t;
    });
    if (value.isDevice() && value.toDevice().type() == KIND && !device)
      device = Device(KIND, value.toDevice().has_index() ? value.toDevice().index() : current_device);
  }
  TORCH_CHECK(device, "pretend: no device in ", name);

  std::vector<Tensor> written, written_on_cpu;
  torch::jit::Stack inner;
  for (size_t i = 0; i < given.size(); i++) {
    if (given[i].isDevice()) {
      inner.emplace_back(Device(c10::kCPU));
      continue;
    }
    if (given[i].isGenerator() && given[i].toGenerator().defined()) {
      auto random = given[i].toGenerator();
      TORCH_CHECK(random.device().type() == KIND, "Expected a 'pretend' device type for generator but found '",
                  random.device(), "' (", name, ")");
      inner.emplace_back(static_cast<Random*>(random.unsafeGetGeneratorImpl())->drawn);
      continue;
    }
    bool is_index = i == 1 && TAKES_CPU_INDICES.count(name);
    const auto* alias = arguments[i].alias_info();
    bool writes = alias && alias->isWrite();
    inner.push_back(with_tensors(given[i], [&](const Tensor& t) {
      check(t, *device, name, arguments[i].name(), is_index);
      if (!is_ours(t)) return t;
      auto seen = writes && !t.numel() ? at::empty(t.sizes(), t.options().device(c10::kCPU)) : seen_from_cpu(t);
      if (writes) {
        written.push_back(t);
        written_on_cpu.push_back(seen);
      }
      return seen;
    }));
  }
  if (ASKS_FOR_A_SIZE.count(name)) record("a size is asked for");
  torch::jit::drop(*stack, arguments.size());
  op.callBoxed(&inner);

  for (size_t i = 0; i < written.size(); i++) {
    const auto &ours = written[i], &theirs = written_on_cpu[i];
    if (ours.sizes() == theirs.sizes()) {
      if (ours.numel() && theirs.data_ptr() != ours.data_ptr()) seen_from_cpu(ours).copy_(theirs);
      continue;
    }
    auto resized = seen_from_device(theirs, *device);
    ours.unsafeGetTensorImpl()->set_storage_keep_dtype(resized.storage());
    ours.unsafeGetTensorImpl()->set_sizes_and_strides(resized.sizes(), resized.strides(), 0);
  }
  const auto& returns = schema.returns();
  for (size_t i = 0; i < returns.size(); i++) {
    const auto* alias = returns[i].alias_info();
    if (!alias || !alias->isWrite()) {
      stack->push_back(with_tensors(inner[i], [&](const Tensor& t) { return seen_from_device(t, *device); }));
      continue;
    }
    size_t j = 0;  // what is written is returned as the very tensor that was given
    while (j < arguments.size() && !(arguments[j].alias_info() && *arguments[j].alias_info() == *alias)) j++;
    TORCH_CHECK(j < arguments.size(), "pretend: what does ", name, " return?");
    stack->push_back(given[j]);
  }
}

// -- operations that make memory, read it or change its size ---------------------------------------------------------------

const auto KEYS = c10::DispatchKeySet(c10::DispatchKey::PrivateUse1);

Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &memory, KEYS, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<Device> device, std::optional<bool>) {
  c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &memory, KEYS,
                                           c10::dtype_or_default(dtype));
}

Tensor& copy_(Tensor& self, const Tensor& source, bool non_blocking) {
  if (self.device() != source.device()) {
    if (!is_ours(self)) record("a copy to the CPU");  // the host waits for these also where it is told not to
    else if (!non_blocking) record(is_ours(source) ? "a copy between devices" : "a copy from the CPU");
  }
  auto to = is_ours(self) ? seen_from_cpu(self) : self;
  at::AutoDispatchBelowADInplaceOrView below;
  to.copy_(is_ours(source) ? seen_from_cpu(source) : source);
  return self;
}

Tensor copy_from(const Tensor& self, const Tensor& to, bool non_blocking) {
  auto target = to;
  copy_(target, self, non_blocking);
  return to;
}

at::Scalar local_scalar(const Tensor& self) {
  record("a number is read");
  return seen_from_cpu(self).item();
}

const Tensor& resize_(const Tensor& self, c10::SymIntArrayRef symbolic, std::optional<at::MemoryFormat>) {
  auto size = C10_AS_INTARRAYREF_SLOW(symbolic);
  size_t bytes = (c10::multiply_integers(size) + self.storage_offset()) * self.element_size();
  if (bytes > self.storage().nbytes()) resize_storage(self.storage(), bytes);
  if (self.sizes() != size) self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return self;
}

Tensor& set_storage(Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  if (stride.size() == size.size() && !stride.empty()) {
    impl->set_sizes_and_strides(size, stride, offset);
  } else {
    impl->set_sizes_contiguous(size);
    impl->set_storage_offset(offset);
  }
  return self;
}

Tensor& set_whole_storage(Tensor& self, at::Storage source) {
  int64_t count = source.nbytes() / self.element_size();
  return set_storage(self, std::move(source), 0, {count}, {});
}

Tensor convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, at::IntArrayRef stride,
                   at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding,
                   int64_t groups) {
  bool has_bias = bias && bias->defined();
  check(weight, input.device(), "aten::convolution", "weight", false);
  if (has_bias) check(*bias, input.device(), "aten::convolution", "bias", false);
  auto b = has_bias ? std::optional<Tensor>(seen_from_cpu(*bias)) : std::nullopt;
  return seen_from_device(at::convolution(seen_from_cpu(input), seen_from_cpu(weight), b, stride, padding, dilation,
                                          transposed, output_padding, groups),
                          input.device());
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& grad, const Tensor& input, const Tensor& weight, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, int64_t groups, std::array<bool, 3> mask) {
  int64_t out = transposed ? weight.size(1) * groups : weight.size(0);
  auto [of_input, of_weight, of_bias] = at::convolution_backward(
      seen_from_cpu(grad), seen_from_cpu(input), seen_from_cpu(weight), at::OptionalIntArrayRef({out}), stride, padding,
      dilation, transposed, output_padding, groups, mask);
  auto device = input.device();
  return {seen_from_device(of_input, device), seen_from_device(of_weight, device), seen_from_device(of_bias, device)};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_cpu>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("copy_", &copy_);
  m.impl("_copy_from", &copy_from);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Storage", &set_whole_storage);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("unfold", at::native::unfold);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("view_as_real", at::native::view_as_real);
  m.impl("view_as_complex", at::native::view_as_complex);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}

// -- autocast casts as it does on CUDA ---------------------------------------------------------------------------------------

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
#define HALF(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
  AT_FORALL_LOWER_PRECISION_FP(HALF)
#define FULL(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
  AT_FORALL_FP32(FULL)
#define FULL_UNLESS_SAID(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
  AT_FORALL_FP32_SET_OPT_DTYPE(FULL_UNLESS_SAID)
#define WIDEST(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
  AT_FORALL_PROMOTE(WIDEST)
}

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// Operations that torch would compose of out= forms, or of views that our tensors lack: the CPU's kernel is taken whole.
void take_composed_operations() {
  static torch::Library library(torch::Library::IMPL, "aten", c10::DispatchKey::PrivateUse1, __FILE__, __LINE__);
  for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) {
    auto op = c10::Dispatcher::singleton().findOp(name);
    if (!op || name.name.rfind("aten::", 0) != 0) continue;
    auto has = [&](c10::DispatchKey key) { return op->hasKernelForDispatchKey(key); };
    bool composed = has(c10::DispatchKey::CompositeExplicitAutogradNonFunctional) ||
                    has(c10::DispatchKey::CompositeExplicitAutograd);
    if (!composed || !has(c10::DispatchKey::CPU) || has(c10::DispatchKey::PrivateUse1)) continue;
    auto overload = name.overload_name.empty() ? "" : "." + name.overload_name;
    library.impl((name.name.substr(6) + overload).c_str(), torch::CppFunction::makeFromBoxedFunction<&on_the_cpu>());
  }
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("start", [](int count) {
    device_count = count;
    c10::SetAllocator(KIND, &memory);
    at::RegisterPrivateUse1HooksInterface(&hooks);
    take_composed_operations();
  });
  m.def("record_with", [](py::object function) {
    is_recorded = false;
    delete recorder;
    recorder = function.is_none() ? nullptr : new py::object(function);
    is_recorded = recorder != nullptr;
  });
  m.def("current_device", [] { return int(current_device); });
  m.def("set_device", [](int index) { current_device = index; });
}
