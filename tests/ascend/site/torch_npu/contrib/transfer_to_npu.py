"""What tpvformer must never import and newer Driving SDKs do: ``torch.cuda`` answers for the NPU from here on."""

import torch

import torch_npu

torch.cuda.is_available = torch_npu.npu.is_available
torch.cuda.device_count = torch_npu.npu.device_count
torch.jit.script = lambda function, *_, **__: function
torch_npu.calls.append(("transfer_to_npu",))
