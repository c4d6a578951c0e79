"""A device that is not there: tensors hold data, but say that they lie on `meta`, and refuse to be mixed with tensors that lie elsewhere"""
import torch
from contextlib import contextmanager
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

FAR = torch.device("meta")

class Far(torch.Tensor):
    "A tensor on the device that is not there; `near` is its data"
    @staticmethod
    def __new__(cls, near):
        t = torch.Tensor._make_wrapper_subclass(cls, near.shape, strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype, device=FAR, requires_grad=False)
        t.near = near
        return t
    def new_tensor(self, *args, **kwargs): return Far(self.near.new_tensor(*args, **kwargs)) # PyTorch makes these two by other ways
    def __deepcopy__(self, memo):
        t = Far(self.near.clone())
        return torch.nn.Parameter(t, self.requires_grad) if getattr(self, "_is_param", False) else t
    def tolist(self): return self.near.tolist()
    def __repr__(self): return f"Far({self.near})"
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return _run(func, args, kwargs or {})

def _run(func, args, kwargs):
    flat = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    far, near = [t for t in flat if isinstance(t, Far)], [t for t in flat if not isinstance(t, Far) and t.ndim]
    name, device = func.name(), kwargs.get("device")
    copies = "_to_copy" in name or "copy_" in name
    if far and near and not copies: raise RuntimeError(f"{name} mixes tensors of two devices, of shapes {[tuple(t.shape) for t in far]} and {[tuple(t.shape) for t in near]}")
    to_far = torch.device(device).type == "meta" if device is not None else bool(far)
    if name == "aten::_local_scalar_dense": to_far = False
    if "copy_" in name: to_far = isinstance(args[0], Far)
    if device is not None: kwargs = {**kwargs, "device": torch.device("cpu") if to_far else device}
    out = func(*tree_map(lambda t: t.near if isinstance(t, Far) else t, args), **tree_map(lambda t: t.near if isinstance(t, Far) else t, kwargs))
    if func._schema.name.endswith("_") or func._schema.is_mutable: # the same object comes back
        outs = [a for a in args if isinstance(a, torch.Tensor)]
        if isinstance(out, torch.Tensor) and outs and isinstance(outs[0], Far) and out is outs[0].near: return outs[0]
    return tree_map(lambda t: Far(t) if isinstance(t, torch.Tensor) and to_far else t, out)

class _Data(TorchFunctionMode):
    "`torch.tensor` and `as_tensor` put their data there, too"
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in (torch.tensor, torch.as_tensor) or torch.device(kwargs.get("device") or "cpu").type != "meta": return func(*args, **kwargs)
        if isinstance(args[0], Far): return func(args[0], **{**kwargs, "device": None}) if "dtype" in kwargs else args[0]
        return Far(func(*args, **{**kwargs, "device": "cpu"}))

class _Ops(TorchDispatchMode):
    "`device=x.device` of a far tensor makes far tensors"
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return _run(func, args, kwargs or {})

@contextmanager
def elsewhere():
    "Inside, far tensors work, and nothing else works with them"
    with _Data(), _Ops(): yield

def far(o):
    "A tensor or a module on the device that is not there"
    if isinstance(o, torch.Tensor): return Far(o.detach())
    for m in o.modules():
        for k, p in list(m._parameters.items()):
            if p is not None: m._parameters[k] = torch.nn.Parameter(Far(p.detach()), requires_grad=p.requires_grad)
        for k, b in list(m._buffers.items()):
            if b is not None: m._buffers[k] = Far(b)
    return o
