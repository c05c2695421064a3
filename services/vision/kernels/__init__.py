"""Steps of encoders as fused Triton kernels. Imported where tensors are on a CUDA device."""
