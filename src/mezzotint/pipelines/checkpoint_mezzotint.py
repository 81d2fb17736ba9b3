# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Reads and writes a pipeline and its adapters.

Shared by all pipelines: in a saved one this text stands in place of the line that imports it (`_joined`), so that a
checkpoint holds one file of code for each class, which stands alone.

A pipeline's code lives two lives, told apart by `__name__`. As a module of the package `mezzotint` it loads checkpoints
with the installed package's classes and needs no trust in the checkpoint's code. As a file in a checkpoint it is loaded
by `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` where mezzotint is not installed.
"""

import ast
import copy
import functools
import hashlib
import inspect
import itertools
import json
import numbers
import re
import reprlib
import shutil
import sys
import tempfile
from os import PathLike, fspath
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers import pipelines as diffusers_pipelines
from diffusers.loaders.lora_base import LoraBaseMixin, _fetch_state_dict, _load_lora_into_text_encoder
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES, simple_get_class_obj
from diffusers.utils import USE_PEFT_BACKEND, get_peft_kwargs, logging, require_peft_backend
from huggingface_hub import ModelCard, create_repo, file_exists
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Beside the class of a component diffusers looks for those that it may be derived from
from diffusers.guiders import BaseGuidance  # noqa: F401 # isort: skip
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401 # isort: skip
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast  # noqa: F401 # isort: skip

logger = logging.get_logger(__name__)

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()
VERSIONED = re.compile(r"(?P<stem>\w+)_v[0-9a-f]{8}")
LOADING = re.compile(r'from_pretrained\("(?:[^"\\]|\\.)*"(?=, trust_remote_code=True\))')  # the card's line
AS_IT_IS = object()  # in the place of a dtype that is not to change
# What stands beside the components in a published folder, and goes along when the pipeline is saved elsewhere
COMPANIONS = ("README.md", "LICENSE", "recipe.yaml", "metrics.json", "samples/*.png")
# By which diffusers' modular pipelines find the code of the blocks, and the components
BLOCKS, MODULAR_INDEX = "modular_config.json", "modular_model_index.json"
OF_THE_WEIGHTS = ("LICENSE", "recipe.yaml")  # the others are of the task: a card's example, measurements, drawings


class MezzotintLoraLoaderMixin(LoraBaseMixin):
    """Low-rank adapters (LoRA, <https://huggingface.co/papers/2106.09685>, and DoRA) of the U-Net and of any
    `transformers` text encoder, in diffusers' format: names that begin with `unet.` and `text_encoder.`, the adapters'
    settings in the file's header. Needs peft. What is not here (`set_adapters`, `unload_lora_weights`,
    `delete_adapters`, ...) is diffusers' own."""

    _lora_loadable_modules = ["unet", "text_encoder"]
    unet_name, text_encoder_name = _lora_loadable_modules

    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict, return_lora_metadata: bool = False, **kwargs
    ) -> dict[str, torch.Tensor] | tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
        """The tensors by name of a folder, a Hub repository, a safetensors file or a dict, and with
        `return_lora_metadata` the adapters' settings where there are any. `kwargs` (`weight_name`, `subfolder`,
        `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`, `proxies`) say where it is."""
        source, name = pretrained_model_name_or_path_or_dict, kwargs.get("weight_name")
        for file in (name, source if isinstance(source, (str, PathLike)) and Path(source).is_file() else None):
            if file is not None and not str(file).endswith(".safetensors"):
                raise ValueError(f"a LoRA is read from a .safetensors file, nothing that is pickled: got {str(file)!r}")
        names = (
            "weight_name", "subfolder", "revision", "token", "cache_dir", "force_download", "local_files_only",
            "proxies",
        )  # fmt: skip
        state_dict, metadata = _fetch_state_dict(
            source,
            use_safetensors=True,
            allow_pickle=False,
            user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
            **dict.fromkeys(names) | kwargs,
        )
        strangers = [key for key in state_dict if not key.startswith(("unet.", "text_encoder.")) or "lora" not in key]
        if strangers or not state_dict:
            raise ValueError(
                "the names of a LoRA must begin with 'unet.' or 'text_encoder.' and hold 'lora': got "
                f"{repr(strangers[0]) if strangers else 'no tensors'}"
            )
        pair = {".lora_A.weight": ".lora_B.weight", ".lora_B.weight": ".lora_A.weight"}
        for key in state_dict:
            stem, ending = key[: -len(".lora_A.weight")], key[-len(".lora_A.weight") :]
            if ending in pair and stem + pair[ending] not in state_dict:
                raise ValueError(f"each layer of a LoRA must have lora_A and lora_B: {key} has no {pair[ending][1:-7]}")
        return (state_dict, metadata) if return_lora_metadata else state_dict

    @require_peft_backend
    def load_lora_weights(
        self, pretrained_model_name_or_path_or_dict, adapter_name: str | None = None, hotswap: bool = False, **kwargs
    ) -> None:
        """Add an adapter and make it the active one.

        Args:
            pretrained_model_name_or_path_or_dict: a folder, a Hub repository, a safetensors file, or tensors by name.
            adapter_name (`str`, *optional*): by default the first free one of `default_0`, `default_1`, ...
            hotswap (`bool`): take the place of the U-Net's adapter of that name, as diffusers does.
            kwargs: as of `lora_state_dict`, and diffusers' `low_cpu_mem_usage`.

        Raises:
            ValueError: for tensors that are no LoRA of such a pipeline, a name in use, or a text encoder's adapter that
                should take the place of another.
        """
        common = {"low_cpu_mem_usage": kwargs.pop("low_cpu_mem_usage", True), "hotswap": hotswap, "_pipeline": self}
        state_dict, metadata = self.lora_state_dict(
            pretrained_model_name_or_path_or_dict, return_lora_metadata=True, **kwargs
        )
        used = {name for names in self.get_list_adapters().values() for name in names}
        if adapter_name in used and not hotswap:
            raise ValueError(f"adapter_name must be new: got {adapter_name!r}, in use are {sorted(used)}")
        adapter_name = adapter_name or next(name for i in itertools.count() if (name := f"default_{i}") not in used)
        common["adapter_name"] = adapter_name
        text = {key: value for key, value in state_dict.items() if key.startswith("text_encoder.")}
        if text and hotswap:  # before the U-Net's is exchanged
            raise ValueError("hotswap must be of the U-Net's adapters alone: got a LoRA with a part for a text encoder")

        if any(key.startswith("unet.") for key in state_dict):
            self.unet.load_lora_adapter(dict(state_dict), prefix="unet", metadata=metadata, **common)
            self.unet.train(self.unet.training)  # the adapters' dropout too, which comes in training mode
        if text and self.text_encoder is None:
            logger.warning("This pipeline has no text encoder: the LoRA's part for one is left out")
        elif text:
            if metadata is None:  # diffusers would look for CLIP's names
                bare = {key.removeprefix("text_encoder."): value for key, value in text.items()}
                ranks = {key: value.shape[1] for key, value in bare.items() if key.endswith(".lora_B.weight")}
                found = get_peft_kwargs(ranks, None, bare, is_unet=False)
                metadata = {f"text_encoder.{key}": value for key, value in found.items()}
            # diffusers knows an encoder's adapters by its own two names, and turns them back whatever the encoder;
            # transformers, which then loads them, would pass over DoRA's magnitudes
            for ours, theirs in (
                (r"\.lora_A\.", ".lora_linear_layer.down."),
                (r"\.lora_B\.", ".lora_linear_layer.up."),
                (r"\.lora_magnitude_vector$", ".lora_magnitude_vector.weight"),
            ):
                text = {re.sub(ours, theirs, key): value for key, value in text.items()}
            _load_lora_into_text_encoder(
                text, None, self.text_encoder, prefix="text_encoder", metadata=metadata, **common
            )
        _align_weights(self.unet, self.text_encoder)

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | PathLike,
        unet_lora_layers: dict[str, torch.Tensor] | None = None,
        text_encoder_lora_layers: dict[str, torch.Tensor] | None = None,
        unet_lora_adapter_metadata: dict[str, Any] | None = None,
        text_encoder_lora_adapter_metadata: dict[str, Any] | None = None,
        **kwargs,
    ) -> None:
        """Write `pytorch_lora_weights.safetensors`, from what peft's `get_peft_model_state_dict` gives of each model
        and the settings (`model.peft_config[name].to_dict()`). `kwargs` (`weight_name`, ...) are diffusers'."""
        layers = {"unet": unet_lora_layers, "text_encoder": text_encoder_lora_layers}
        metadata = {"unet": unet_lora_adapter_metadata, "text_encoder": text_encoder_lora_adapter_metadata}
        layers = {name: tensors for name, tensors in layers.items() if tensors}
        if not layers:
            raise ValueError("at least one of unet_lora_layers and text_encoder_lora_layers must be given: got neither")
        kwargs["safe_serialization"] = True  # nothing is pickled
        cls._save_lora_weights(save_directory, layers, {name: metadata[name] for name in layers}, **kwargs)

    def set_adapters(
        self, adapter_names: list[str] | str, adapter_weights: float | dict | list[float] | list[dict] | None = None
    ) -> None:
        """Make these adapters the active ones, and no others.

        Args:
            adapter_names (`str` or list of `str`): which.
            adapter_weights (`float`, `dict` or a list with one of them for each adapter, *optional*): what each one
                counts, 1 by default; a `dict` says it of `"unet"` and `"text_encoder"`.

        Raises:
            ValueError: for weights of single blocks, which are not supported, and for a name that is not in use.
        """
        for weights in adapter_weights if isinstance(adapter_weights, list) else [adapter_weights]:
            for weight in weights.values() if isinstance(weights, dict) else [weights]:
                if not (weight is None or isinstance(weight, numbers.Real)):
                    raise ValueError(
                        "adapter_weights must be a number for an adapter, or a number for each of its components, as "
                        f"{{'unet': 0.5, 'text_encoder': 1.0}}: got {reprlib.repr(weights)}"
                    )
        super().set_adapters(adapter_names, adapter_weights)

    def fuse_lora(self, components: list[str] | None = None, lora_scale: float = 1.0, **kwargs) -> None:
        """Add the active adapters to the weights of `components`, by default of both. With `unload_lora_weights` after
        it the pipeline is a plain one."""
        components = components or self._lora_loadable_modules
        for layer in self._layers_with_adapters(components):
            if not layer.merged:
                layer.unfused_scaling = dict(layer.scaling)  # which fusing multiplies for good
        super().fuse_lora(components, lora_scale, **kwargs)

    def unfuse_lora(self, components: list[str] | None = None, **kwargs) -> None:
        """The inverse of `fuse_lora`, up to rounding."""
        components = components or self._lora_loadable_modules
        super().unfuse_lora(components, **kwargs)
        for layer in self._layers_with_adapters(components):
            layer.scaling.update(vars(layer).pop("unfused_scaling", {}))

    def _layers_with_adapters(self, components: list[str]) -> list[Any]:
        networks = [getattr(self, name, None) for name in components]
        modules = [module for network in networks if network is not None for module in network.modules()]
        return [module for module in modules if isinstance(getattr(module, "scaling", None), dict)]


class MezzotintCheckpointMixin(MezzotintLoraLoaderMixin):
    """Loads and saves a pipeline together with its code. Comes before `DiffusionPipeline` among a task's bases."""

    pipeline_tag = "text-to-image"  # the task, as the Hub names it

    @classmethod
    def _dict_from_json_file(cls, json_file):
        index = _read_json(json_file)
        name = index.get("_class_name")
        name = name[-1] if isinstance(name, list) and name else name
        # Installed: a pipeline of another task, whose components are of the same kinds
        others = vars(sys.modules["mezzotint"]).values() if __name__.startswith("mezzotint.") else ()
        known = [x for x in (*cls.__mro__, *others) if isinstance(x, type) and issubclass(x, MezzotintCheckpointMixin)]
        if name not in [x.__name__ for x in known]:
            raise ValueError(f"{json_file} must be the index of a {cls.__name__}: got _class_name {reprlib.repr(name)}")
        # Installed: the class to load is this one, not the checkpoint's file
        if __name__.startswith("mezzotint."):
            index["_class_name"] = name
        return index

    @classmethod
    def load_config(cls, *args, **kwargs):
        loaded = super().load_config(*args, **kwargs)
        index = loaded[0] if isinstance(loaded, tuple) else loaded
        # Installed: components come from the package's modules (`import mezzotint` loads them), not from the checkpoint
        if __name__.startswith("mezzotint."):
            for name, entry in index.items():
                match = VERSIONED.fullmatch(str(entry[0])) if isinstance(entry, list) and len(entry) == 2 else None
                if match and sys.modules.keys() & {f"mezzotint.{x}.{match['stem']}" for x in ("models", "schedulers")}:
                    found = getattr(sys.modules["mezzotint"], str(entry[1]), None)
                    if not isinstance(found, type):
                        got = reprlib.repr(entry[1])
                        raise ValueError(f"{cls.config_name} must give {name} as a class of mezzotint: got {got}")
                    index[name] = [found.__module__, found.__name__]  # wherever it is defined today
        return loaded

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike, **kwargs):
        """The pipeline of a folder or a Hub repository, as diffusers' method of that name, by this package's code.

        Raises:
            ValueError: in one line, for a component given in `kwargs` that is of another kind than the pipeline takes,
                or one in the folder that is damaged, or lacks weights, or has others.
            OSError: for files that are not there.
        """
        if not isinstance(pretrained_model_name_or_path, (str, PathLike)):
            got = " ".join(reprlib.repr(pretrained_model_name_or_path).split())
            raise ValueError(f"pretrained_model_name_or_path must be a folder or a name on the Hub: got {got}")
        for name, kinds in cls._get_signature_types().items():
            kinds = tuple(kind for kind in kinds if kind is not type(None))
            given = getattr(kwargs.get(name), "_orig_mod", kwargs.get(name))  # of a compiled model, the model
            if given is not None and not isinstance(given, kinds):
                got = " ".join(reprlib.repr(given).split())
                raise ValueError(f"{name} must be a {kinds[0].__name__}: got {got}")
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except ValueError as error:
            if "\n" not in str(error):
                raise
            raise ValueError(" ".join(str(error).split())) from error

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        # diffusers asks here what to load, whichever class `from_pretrained` was called of. What comes from a library
        # is loaded by `_load`, found as an attribute of this module
        init_dict, unused, hidden = super().extract_init_dict(config_dict, **kwargs)
        for name, entry in init_dict.items():
            if not isinstance(entry, (list, tuple)) or [type(x) for x in entry] not in ([str, str], [type(None)] * 2):
                raise ValueError(f"{cls.config_name} must give {name} as [library, class]: got {reprlib.repr(entry)}")
            library, class_name = entry
            if library is None or not (library in LOADABLE_CLASSES or hasattr(diffusers_pipelines, library)):
                continue  # none, or of the checkpoint's own file
            found = getattr(sys.modules[__name__], f"{library}:{class_name}")
            expected = [x for x in cls._get_signature_types()[name] if x is not type(None)]
            if not issubclass(found, tuple(expected)) and not hasattr(found, "_backends"):
                raise ValueError(
                    f"{cls.config_name} must give {name} as a {expected[0].__name__}: got {library}.{class_name}"
                )
            init_dict[name] = (__name__, f"{library}:{class_name}")
        return init_dict, unused, hidden

    def register_modules(self, **components):
        _align_weights(*(x for x in components.values() if isinstance(x, torch.nn.Module)))
        super().register_modules(**components)

    def register_to_config(self, **kwargs):
        # diffusers' note of where the pipeline was loaded from: it must hold wherever the process goes next
        if source := kwargs.get("_name_or_path"):
            kwargs["_name_or_path"] = str(Path(source).absolute()) if Path(source).is_dir() else source
        super().register_to_config(**kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # diffusers' index of components would go on saying that there is none here, and leave out what was assigned
        if value is not None and vars(self).get("_internal_dict", {}).get(name) in ((None, None), [None, None]):
            self.register_modules(**{name: value})

    @classmethod
    def from_pipe(cls, pipeline, **kwargs):
        """A pipeline of this class around the components of another, as diffusers' method of that name; they stay of
        the type that they are of, unless a `dtype` is asked for."""
        # diffusers moves a component along only if its exact type is annotated, and asks for those that `pipeline`
        # does not know, be they optional here
        for name in cls._get_signature_types():
            if name in cls._optional_components or getattr(pipeline, name, None) is not None:
                kwargs.setdefault(name, getattr(pipeline, name, None))
        if getattr(pipeline, "_origin", None) is not None:  # of a call that goes on, whose steps it takes
            kwargs["scheduler"] = copy.deepcopy(kwargs["scheduler"])
        if kwargs.get("dtype", kwargs.get("torch_dtype")) is None and kwargs.get("custom_pipeline") is None:
            kwargs["dtype"] = AS_IT_IS
        return super().from_pipe(pipeline, **kwargs)

    def to(self, *args, **kwargs):
        """Move the components, or bring them to another type, as diffusers' method of that name."""
        return self if kwargs.get("dtype") is AS_IT_IS else super().to(*args, **kwargs)

    def save_config(self, save_directory, push_to_hub: bool = False, **kwargs) -> None:
        """Write `model_index.json` and, beside it and in each component's folder, the source file of every class that
        is neither diffusers' nor transformers', so that the folder loads anywhere. Called by `save_pretrained`."""
        folder = Path(save_directory)
        path = folder / self.config_name
        before = _read_json(path) if path.is_file() else {}
        super().save_config(save_directory)
        index = json.loads(path.read_text(encoding="utf-8"))
        index["_class_name"] = [_ship_source(type(self), folder), type(self).__name__]
        index.pop("_name_or_path", None)  # where it was loaded from is nobody else's business
        for name, component in self.components.items():
            library = index[name][0]
            if library is None or library in LOADABLE_CLASSES or hasattr(diffusers_pipelines, library):
                continue
            component = getattr(component, "_orig_mod", component)  # of a compiled model, the model
            index[name] = [_ship_source(type(component), folder / name), type(component).__name__]
            config_path = folder / name / component.config_name
            if isinstance(component, ModelMixin) and config_path.is_file():  # for diffusers' AutoModel
                config = json.loads(config_path.read_text(encoding="utf-8"))
                config["auto_map"] = {"AutoModel": ".".join(index[name])}
                config.pop("_name_or_path", None)
                config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for name, entry in before.items():  # code of other classes that were saved here
            stem = entry[0] if isinstance(entry, list) and entry and entry != index.get(name) else None
            if VERSIONED.fullmatch(str(stem)):
                (folder / ("" if name == "_class_name" else name) / f"{stem}.py").unlink(missing_ok=True)

        _ship_blocks(self, index, folder)
        source = Path(getattr(self.config, "_name_or_path", None) or "")
        if source.is_absolute() and (source / self.config_name).is_file() and source.resolve() != folder.resolve():
            task = _read_json(source / self.config_name).get("_class_name")
            same = (task[-1] if isinstance(task, list) and task else task) == type(self).__name__
            _copy_companions(source, folder, COMPANIONS if same else OF_THE_WEIGHTS)
        if push_to_hub:
            repo_id, token = kwargs.get("repo_id", folder.name), kwargs.get("token")
            repo_id = create_repo(repo_id, private=kwargs.get("private"), token=token, exist_ok=True).repo_id
            with tempfile.TemporaryDirectory() as alone:  # without what else there is in the folder
                self.save_config(alone)
                self._upload_folder(alone, repo_id, token, kwargs.get("commit_message"), kwargs.get("create_pr", False))

    def save_pretrained(
        self,
        save_directory: str | PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        **kwargs,
    ) -> None:
        """Save as diffusers does, with the code that the pipeline needs, but always as safetensors:
        nothing is pickled. Of the folder that it was loaded from the card, the licence, the recipe, the figures and the
        sample pictures go along, unless they are links. With `push_to_hub` it is uploaded too, as the method of that
        name does; `repo_id` (by default the folder's name) and the other arguments in `kwargs` are for that.

        Raises:
            ValueError: for a pipeline with adapters, which would be saved neither apart nor in the weights.
        """
        if not isinstance(save_directory, (str, PathLike)) or not fspath(save_directory):
            raise ValueError(f"save_directory must be a folder, or the place of a new one: got {save_directory!r}")
        if adapters := self.get_list_adapters() if USE_PEFT_BACKEND else {}:
            raise ValueError(
                "a pipeline is saved without adapters: fuse_lora() and then unload_lora_weights() put them into its "
                f"weights, save_lora_weights() saves them alone: got {adapters}"
            )
        options = {"variant": variant, "max_shard_size": max_shard_size}
        super().save_pretrained(save_directory, **options, use_flashpack=use_flashpack)
        mode = (Path(save_directory) / self.config_name).stat().st_mode
        for path in Path(save_directory).glob("*/*.safetensors"):  # which are written for their owner's eyes only
            path.chmod(mode)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **options, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        max_shard_size: int | str | None = None,
    ) -> str:
        """Upload the pipeline with its code and with a model card, that of the folder that it was loaded from or else
        the repository's own, whose loading line then names `repo_id`. Arguments as diffusers'; returns the commit's
        address."""
        repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
            card = Path(folder) / "README.md"
            if card.is_file():
                text = card.read_text(encoding="utf-8")
            elif file_exists(repo_id, card.name, token=token):
                text = ModelCard.load(repo_id, token=token).content
            else:
                text = _MINIMAL_CARD.format(task=self.pipeline_tag)
            text = LOADING.sub(f'from_pretrained("{repo_id}"', text)
            card.write_text(text, encoding="utf-8")
            return self._upload_folder(folder, repo_id, token, commit_message, create_pr, subfolder)

    def _upload_folder(self, working_dir, repo_id, *args, **kwargs):
        if (modular := Path(working_dir) / MODULAR_INDEX).is_file():
            modular.write_bytes(modular_index_at(modular.read_bytes(), repo_id))
        return super()._upload_folder(working_dir, repo_id, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]


_MINIMAL_CARD = """\
---
library_name: diffusers
pipeline_tag: {task}
tags:
- mezzotint
---

A diffusion pipeline ({task}). It carries its own code:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("", trust_remote_code=True)
```
"""


def __getattr__(name: str) -> type:
    """A class by the name that `extract_init_dict` gives it, `library:class`: its `from_pretrained` is `_load`."""
    library, colon, class_name = name.partition(":")
    if not colon:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        cls = simple_get_class_obj(library, class_name)
    except (AttributeError, ImportError):
        cls = None
    if not isinstance(cls, type):
        raise ValueError(f"{library} must have the class that the checkpoint names: got {reprlib.repr(class_name)}")
    if hasattr(cls, "_backends"):  # in place of one that needs a package which is not there, as diffusers then says
        return cls
    return type(cls.__name__, (cls,), {"from_pretrained": functools.partial(_load, cls)})


def _load(cls: Any, folder: str | PathLike, **kwargs: Any) -> Any:
    """The component of class `cls` that is in `folder`, as `cls.from_pretrained(folder, **kwargs)` would load it, but
    that every weight must be there and have its place, and that nothing is pickled, run or fetched from elsewhere.

    Raises:
        ValueError: in one line, for what is damaged, or lacks weights, or has others.
        OSError: for files that are not there.
        ImportError: for a package that they need.
    """
    is_model = issubclass(cls, (ModelMixin, PreTrainedModel))
    config = Path(folder) / (getattr(cls, "config_name", None) or "config.json")
    kwargs["local_files_only"] = True
    if issubclass(cls, (PreTrainedModel, PreTrainedTokenizerBase)):
        kwargs["trust_remote_code"] = False
    if is_model:
        kwargs |= {"output_loading_info": True, "use_safetensors": kwargs.get("use_safetensors") is not False}
    if issubclass(cls, PreTrainedModel):
        kwargs["ignore_mismatched_sizes"] = True  # and reported below
    try:
        if odd := [path for path in Path(folder).iterdir() if not (path.is_file() or path.is_dir())]:
            raise OSError(f"{odd[0].name} is no plain file")  # a pipe would be waited for, a lost link passed over
        if issubclass(cls, PreTrainedTokenizerBase):
            settings = Path(folder) / "tokenizer_config.json"
            if not settings.is_file():  # without which transformers makes another tokenizer
                raise OSError(f"{settings.name} is missing")
            if "architectures" in _read_json(settings):
                raise ValueError(f"{settings.name} must hold a tokenizer's settings: got a model's")
        if not issubclass(cls, PreTrainedTokenizerBase) or config.is_file():
            for name, value in _read_json(config).items():
                if "layers" in name and isinstance(value, int) and value > 10_000:  # which would be made one by one
                    raise ValueError(f"{name} must be at most 10,000: got {value}")
        loaded: Any = cls.from_pretrained(folder, **kwargs)
    except (MemoryError, torch.OutOfMemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # whatever the libraries make of a damaged file, panics of Rust's included
        kind = next((kind for kind in (OSError, ImportError) if isinstance(error, kind)), ValueError)
        raise kind(f"{folder} cannot be loaded: {' '.join(str(error).split())}") from error
    if not is_model:
        return loaded
    model, report = loaded
    for kind in ("missing", "unexpected", "mismatched"):
        keys = [(key,) if isinstance(key, str) else key for key in report[f"{kind}_keys"]]  # or with two shapes
        # many encoders are published without the pooler of their class, or with the one of another: it is not used
        keys = sorted(" ".join(map(str, key)) for key in keys if "pooler" not in key[0].split("."))
        if keys:
            raise ValueError(
                f"the weights in {folder} must be those of its config: {len(keys)} {kind} "
                f"({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            )
    return model


def _read_json(path: str | PathLike) -> dict[str, Any]:
    """The JSON object in a file. Anything else that may stand there, diffusers would take for the name of a repository.

    Raises:
        ValueError: for what is no object.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} must hold a JSON object: got one that is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} must hold a JSON object: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object: got {reprlib.repr(found)}")
    return found


def _copy_companions(source: Path, folder: Path, patterns: tuple[str, ...]) -> None:
    """Copy what goes along with a pipeline: files alone, none of them reached by a link, which may lead anywhere."""
    for pattern in patterns:
        for path in sorted(source.glob(pattern)):
            target = folder / path.relative_to(source)
            if path.is_symlink() or (path.parent != source and path.parent.is_symlink()):
                logger.warning(f"{path} is a link, or in a folder that is one, and is not saved along")
            elif path.is_file():
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)


def _align_weights(*models: torch.nn.Module | None) -> None:
    """Put weights that lie askew in memory, as those mapped from a file do, at the 64-byte boundaries of fresh ones.
    CPU kernels round differently there: without this a saved and reloaded pipeline draws other bits."""
    for model in models:
        for tensor in [*model.parameters(), *model.buffers()] if model is not None else []:
            if tensor.device.type == "cpu" and type(tensor.data) is torch.Tensor and tensor.data_ptr() % 64:
                tensor.data = tensor.data.clone()


def _ship_source(cls: type, folder: Path) -> str:
    """Write the file that defines `cls` into `folder` and return its module name there. The name ends in a hash of the
    content: diffusers runs the files of all checkpoints in one flat space of modules, where equal names must mean
    equal code."""
    source = Path(inspect.getfile(cls))
    match = VERSIONED.fullmatch(source.stem)
    stem = match["stem"] if match else source.stem
    content = _joined(sys.modules[cls.__module__], source)
    return _ship(stem, content, folder)


def _ship(stem: str, content: bytes, folder: Path) -> str:
    """Write a file of code into `folder`, in the place of others of that stem, and return its module name there."""
    name = f"{stem}_v{hashlib.sha256(content).hexdigest()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{stem}_v*.py"):
        if VERSIONED.fullmatch(old.stem) and old.stem != name:
            old.unlink()
    (folder / f"{name}.py").unlink(missing_ok=True)  # of a pipe or a link a file is made
    (folder / f"{name}.py").write_bytes(content)
    return name


def _ship_blocks(pipe: Any, index: dict[str, Any], folder: Path) -> None:
    """Write what `diffusers.ModularPipeline` loads a pipeline by, whose `model_index.json` is `index`: the file of the
    blocks, from the package or else from the folder that the pipeline was loaded from, its place, and the components'.
    Of a pipeline that draws from no text alone, and where there is no such file, there is nothing to load."""
    for name in (BLOCKS, MODULAR_INDEX):
        (folder / name).unlink(missing_ok=True)
    source, stem, code = Path(getattr(pipe.config, "_name_or_path", None) or ""), "modular_mezzotint", None
    if __name__.startswith("mezzotint."):
        blocks = sys.modules[f"mezzotint.pipelines.{stem}"]
        code = _joined(blocks, Path(str(blocks.__file__)))
    elif source.is_absolute():
        found = [x for x in source.glob(f"{stem}_v*.py") if x.is_file() and not x.is_symlink()]
        code = found[0].read_bytes() if found else None
    if code is None or "text_to_image" not in pipe.tasks:
        for path in folder.glob(f"{stem}_v*.py"):
            path.unlink()
        return
    stem = _ship(stem, code, folder)
    version, components = index["_diffusers_version"], {}
    for name, component in pipe.components.items():
        if component is None:
            continue
        library, class_name = index[name]
        if VERSIONED.fullmatch(str(library)):
            remote = "Model" if isinstance(component, torch.nn.Module) else "Scheduler"
            library, class_name = stem, f"MezzotintRemote{remote}"
        # Beside the index, wherever that is: only on the Hub a place must be named, which an upload does
        place = {"pretrained_model_name_or_path": None, "subfolder": name, "variant": None, "revision": None}
        components[name] = [*index[name], {"type_hint": [library, class_name], **place}]
    written = {
        BLOCKS: {"_class_name": "MezzotintBlocks", "auto_map": {"ModularPipelineBlocks": f"{stem}.MezzotintBlocks"}},
        MODULAR_INDEX: {"_class_name": "ModularPipeline", "_blocks_class_name": "MezzotintBlocks", **components},
    }
    for name, content in written.items():
        content["_diffusers_version"] = version
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def modular_index_at(text: bytes, repo_id: str) -> bytes:
    """The text of a `modular_model_index.json` whose components are in the repository `repo_id`."""
    index = json.loads(text)
    for entry in index.values():
        if isinstance(entry, list) and len(entry) == 3 and isinstance(entry[2], dict):
            entry[2]["pretrained_model_name_or_path"] = repo_id
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


@functools.lru_cache(32)
def _imports(text: bytes) -> list[tuple[str, int, int | None]]:
    """The module that each `from ... import` at the top of a source text names, and its lines: from, to."""
    found = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
    return [(str(node.module), node.lineno - 1, node.end_lineno) for node in found]


def _joined(module: ModuleType, path: Path) -> bytes:
    """The text of a module as it is shipped: in place of the first import of each shared file, one of the package's
    beside it, stands that file's text, likewise joined. A file out of a checkpoint has no such import and comes back as
    it is."""
    source = getattr(module, "SOURCE", None) or path.read_bytes()
    package, files = module.__name__.rpartition(".")[0], []
    if not package.startswith("mezzotint."):
        return source

    def joined(text: bytes) -> bytes:
        lines, imports = text.splitlines(keepends=True), []
        for name, start, end in _imports(text):
            if name.rpartition(".")[0] == package:
                shared, new = sys.modules[name], b""
                if (file := Path(str(shared.__file__)).name) not in files:
                    files.append(file)
                    new = joined(shared.SOURCE)
                imports.append((start, end, new))
        for start, end, new in reversed(imports):
            lines[start:end] = [new]
        return b"".join(lines)

    text = joined(source)
    return f"# Joined from {', '.join([path.name, *files])}\n".encode() + text if files else text
