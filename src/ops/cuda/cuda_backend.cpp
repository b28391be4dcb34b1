#include "ops/cuda/cuda_backend.h"

#include <fmt/format.h>

namespace hadal {

Result<std::unique_ptr<Backend>> CudaBackend::make() {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status != cudaSuccess || devices == 0) {
    return fail(ErrorCode::unsupported,
                fmt::format("backend 'cuda': this machine has no CUDA device ({})",
                            status != cudaSuccess ? cudaGetErrorString(status) : "none found"));
  }
  cudaDeviceProp device;
  cuda::check(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  if (device.major != 9 || device.minor != 0) {
    return fail(
        ErrorCode::unsupported,
        fmt::format("backend 'cuda': {} has compute capability {}.{}, and the kernels are for 9.0 (H100, "
                    "H200)",
                    device.name, device.major, device.minor));
  }
  return std::make_unique<CudaBackend>(device.name);
}

CudaBackend::CudaBackend(std::string device) : name_("cuda-" + std::move(device)), recorder_(memory_) {
  memory_.set_flush([this] {
    finish();
    recorder_.flush();
  });
}

CudaBackend::~CudaBackend() {
  memory_.set_flush({});
}

void CudaBackend::finish() {
  if (last_step_ != Step::none) {
    last_step_ = Step::none;
    cuda::row_steps(recorder_, rows_);
  }
  if (read_out_) cuda::hc_pre(recorder_, *read_out_, nullptr);
  read_out_.reset();
  selection_.record(recorder_);
  if (recorder_.full()) recorder_.flush();
}

cuda::RowSteps& CudaBackend::step(Step step, const float* x, float* out, std::int64_t rows,
                                  std::int64_t dim) {
  const bool continues = last_step_ != Step::none && step > last_step_ && x == out && rows_.out == x &&
                         rows_.rows == rows && rows_.dim == dim;
  if (!continues) {
    finish();
    rows_ = {};
    rows_.x = x;
    rows_.out = out;
    rows_.rows = rows;
    rows_.dim = dim;
  }
  last_step_ = step;
  return rows_;
}

void CudaBackend::hc_pre(const HcPreParams& p) {
  finish();
  read_out_ = p;
}

void CudaBackend::rms_norm(const RmsNormParams& p) {
  if (read_out_ && p.x == read_out_->out && p.out == p.x && p.rows == read_out_->n_tokens &&
      p.dim == read_out_->dim) {
    cuda::hc_pre(recorder_, *read_out_, &p);
    read_out_.reset();
    return;
  }
  cuda::RowSteps& steps = step(Step::norm, p.x, p.out, p.rows, p.dim);
  steps.norm = true;
  steps.weight = p.weight;
  steps.eps = p.eps;
}

void CudaBackend::rope(const RopeParams& p) {
  cuda::RowSteps& steps = step(Step::rope, p.x, p.x, p.n_tokens * p.heads, p.dim);
  steps.rope = true;
  steps.heads = p.heads;
  steps.rope_dim = p.rope_dim;
  steps.cos = p.cos;
  steps.sin = p.sin;
  steps.inverse = p.inverse;
}

void CudaBackend::hadamard(const HadamardParams& p) {
  step(Step::hadamard, p.x, p.x, p.rows, p.dim).hadamard = true;
}

void CudaBackend::quantise(const QuantiseParams& p) {
  cuda::RowSteps& steps = step(Step::quantise, p.x, p.x, p.rows, p.dim);
  steps.quantise = true;
  steps.format = p.format;
  steps.quantised_dim = p.quantised_dim;
}

void CudaBackend::round_bf16(const RoundBf16Params& p) {
  cuda::RowSteps& steps = step(Step::bf16, p.x, p.x, p.rows, p.dim);
  steps.bf16 = true;
  steps.bf16_begin = p.begin;
}

void CudaBackend::index_select(const IndexSelectParams& p) {
  if (last_step_ != Step::none || read_out_ || !selection_.add(recorder_, p)) {
    finish();
    selection_.add(recorder_, p);
  }
}

}  // namespace hadal
