"""``flowkernels bench``: fused operations against eager PyTorch, torch.compile and other libraries."""
