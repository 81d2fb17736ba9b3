# Joined from pipeline_mezzotint.py, checkpoint_mezzotint.py, inputs_mezzotint.py, sampling_mezzotint.py
# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Text to image: a prompt is encoded, noise is drawn, the U-Net and the scheduler take turns, pixels come out.

Only the order of these steps lives here. The file travels inside checkpoints, joined with the shared ones that it
imports; components arrive as arguments.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.guiders import BaseGuidance
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput

# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Reads and writes a pipeline and its adapters.

Shared by all pipelines: in a saved one this text stands in place of the line that imports it (`_joined`), so that a
checkpoint holds one file of code for each class, which stands alone.

A pipeline's code lives two lives, told apart by `__name__`. As a module of the package `mezzotint` it loads checkpoints
with the installed package's classes and needs no trust in the checkpoint's code. As a file in a checkpoint it is loaded
by `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` where mezzotint is not installed.
"""

import ast
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
# What stands beside the components in a published folder, and goes along when the pipeline is saved elsewhere
COMPANIONS = ("README.md", "LICENSE", "recipe.yaml", "metrics.json", "samples/*.png")
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
            ValueError: for tensors that are no LoRA of such a pipeline, or a name in use.
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

        if any(key.startswith("unet.") for key in state_dict):
            self.unet.load_lora_adapter(dict(state_dict), prefix="unet", metadata=metadata, **common)
            self.unet.train(self.unet.training)  # the adapters' dropout too, which comes in training mode
        text = {key: value for key, value in state_dict.items() if key.startswith("text_encoder.")}
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
        super().fuse_lora(components or self._lora_loadable_modules, lora_scale, **kwargs)

    def unfuse_lora(self, components: list[str] | None = None, **kwargs) -> None:
        """The inverse of `fuse_lora`, up to rounding."""
        super().unfuse_lora(components or self._lora_loadable_modules, **kwargs)


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
        # diffusers moves a component along only if its exact type is annotated, and asks for those that `pipeline`
        # does not know, be they optional here
        for name in cls._get_signature_types():
            if name in cls._optional_components or getattr(pipeline, name, None) is not None:
                kwargs.setdefault(name, getattr(pipeline, name, None))
        return super().from_pipe(pipeline, **kwargs)

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
    name = f"{stem}_v{hashlib.sha256(content).hexdigest()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{stem}_v*.py"):
        if VERSIONED.fullmatch(old.stem) and old.stem != name:
            old.unlink()
    (folder / f"{name}.py").unlink(missing_ok=True)  # of a pipe or a link a file is made
    (folder / f"{name}.py").write_bytes(content)
    return name


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
        for node in ast.parse(text).body:
            if isinstance(node, ast.ImportFrom) and str(node.module).rpartition(".")[0] == package:
                shared, new = sys.modules[str(node.module)], b""
                if (name := Path(str(shared.__file__)).name) not in files:
                    files.append(name)
                    new = joined(shared.SOURCE)
                imports.append((node.lineno - 1, node.end_lineno, new))
        for start, end, new in reversed(imports):
            lines[start:end] = [new]
        return b"".join(lines)

    text = joined(source)
    return f"# Joined from {', '.join([path.name, *files])}\n".encode() + text if files else text
# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What the inputs of a call may be, whatever the task: each check raises in one line, with the rule and what it got.

Shared by all pipelines: in a saved one this text stands in place of the line that imports it.
"""

import inspect
import math
import numbers
import reprlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.guiders import BaseGuidance

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()
# Guiders of diffusers 0.42 of which the first never changes a layer and the second takes a norm that torch refuses
UNFIT_GUIDERS = ("SmoothedEnergyGuidance", "MagnitudeAwareGuidance")


class MezzotintGuidance(NamedTuple):
    """The guidance of a call; the arguments of the same names are described at `__call__`.

    Args:
        scale (`float`): weight of classifier-free guidance.
        rescale (`float`): how far the guided prediction's deviation is brought back, 0 to 1.
        interval (`(float, float)`, *optional*): the noise levels to guide at.
        guider (one of `diffusers.guiders`, *optional*): in place of classifier-free guidance.
        labels: what the classifier is to see, one or one for each prompt; in the loop their numbers, a
            `torch.Tensor` of shape `(pictures,)`.
        classifier_scale (`float`): weight of the classifier's gradient.
    """

    scale: float
    rescale: float
    interval: tuple[float, float] | None
    guider: BaseGuidance | None
    labels: Any
    classifier_scale: float


class MezzotintInputsMixin:
    """Checks the inputs of a call against the components."""

    unet: Any
    scheduler: Any
    text_encoder: Any
    tokenizer: Any
    guidance_unet: Any
    classifier: Any
    _callback_tensor_inputs: list[str]

    def check_inputs(
        self,
        num_inference_steps,
        timesteps,
        sigmas,
        num_images_per_prompt,
        eta,
        generator,
        latents,
        output_type,
        callback_on_step_end,
        callback_on_step_end_tensor_inputs,
        **counts,
    ) -> None:
        """Raises `ValueError` in one line for an impossible argument, one of `counts` (whole numbers by name) among
        them. Guidance and text have checks of their own."""
        _check_unet(self.unet)
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type must be one of 'pil', 'np', 'pt', 'latent': got {output_type!r}")
        counts["num_images_per_prompt"] = num_images_per_prompt
        if timesteps is None and sigmas is None:
            counts["num_inference_steps"] = num_inference_steps
        for name, value in counts.items():
            if not _is_number(value, numbers.Integral) or value < 1:
                raise ValueError(f"{name} must be a positive whole number: got {_shown(value)}")
        if not _is_number(eta) or eta < 0:
            raise ValueError(f"eta must be a finite number of at least 0: got {_shown(eta)}")
        generators = generator if isinstance(generator, list) else [generator]
        if generator is not None and not (generators and all(isinstance(x, torch.Generator) for x in generators)):
            raise ValueError(f"generator must be a torch.Generator or a list of them: got {_shown(generator)}")
        if latents is not None and not isinstance(latents, torch.Tensor):
            raise ValueError(f"latents must be a tensor: got {_shown(latents)}")
        if latents is not None and not latents.isfinite().all():
            raise ValueError("latents must be finite numbers: got others")
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise ValueError(f"callback_on_step_end must be a function: got {_shown(callback_on_step_end)}")
        names = _tensor_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)
        if unknown := [x for x in names if x not in self._callback_tensor_inputs] if isinstance(names, list) else names:
            possible, got = self._callback_tensor_inputs, _shown(unknown)
            raise ValueError(f"callback_on_step_end_tensor_inputs must be among {possible}: got {got}")

    def check_guidance(self, guidance: MezzotintGuidance) -> None:
        """Raises `ValueError` in one line for impossible guidance, or guidance that the components cannot give."""
        for name, value, least, most in (
            ("guidance_scale", guidance.scale, -math.inf, math.inf),
            ("guidance_rescale", guidance.rescale, 0, 1),
            ("classifier_scale", guidance.classifier_scale, -math.inf, math.inf),
        ):
            if not _is_number(value) or not least <= value <= most:
                within = "" if least == -math.inf else " in [0, 1]"
                raise ValueError(f"{name} must be a finite number{within}: got {_shown(value)}")
        if guidance.interval is not None:
            levels = guidance.interval if isinstance(guidance.interval, (list, tuple)) else ()
            numeric = all(isinstance(x, numbers.Real) for x in levels)
            if len(levels) != 2 or not numeric or not 0 <= levels[0] < levels[1]:
                got = _shown(guidance.interval)
                raise ValueError(f"guidance_interval must be two noise levels, 0 <= low < high: got {got}")
        guider = guidance.guider
        if guider is not None and not isinstance(guider, BaseGuidance):
            raise ValueError(f"guider must be one of diffusers.guiders: got {_shown(guider)}")
        if type(guider).__name__ in UNFIT_GUIDERS:
            raise ValueError(f"{type(guider).__name__} does not work in this version of diffusers: take another guider")
        defaults = inspect.signature(type(guider).__init__).parameters
        for name, value in (guider.config if guider is not None else {}).items():
            if name in defaults and _is_number(defaults[name].default) and not _is_number(value):
                raise ValueError(f"the guider's {name} must be a finite number: got {_shown(value)}")
        if guidance.labels is not None and self.classifier is None:
            raise ValueError("class_labels are for a classifier, which this pipeline does not have: leave them out")
        if guidance.labels is not None and not hasattr(self.scheduler, "guide"):
            raise ValueError(
                f"class_labels need a scheduler that can guide, such as MezzotintScheduler: got "
                f"{type(self.scheduler).__name__}"
            )

    def check_text(
        self,
        prompt,
        negative_prompt,
        prompt_embeds,
        negative_prompt_embeds,
        prompt_attention_mask,
        negative_prompt_attention_mask,
    ) -> None:
        """Raises `ValueError` in one line for texts that contradict each other or that the components cannot read."""
        if self.guidance_unet is not None and (negative_prompt is not None or negative_prompt_embeds is not None):
            raise ValueError("the guidance_unet stands where a negative prompt would: leave one of the two out")
        if self.unet.config.cross_attention_dim is None:
            if any(x is not None for x in (prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)):
                raise ValueError("this pipeline's U-Net reads no text: leave prompts and their embeds out")
            return
        for name in ("text_encoder", "tokenizer"):
            if getattr(self, name) is None and (prompt is not None or negative_prompt is not None):
                what = name.replace("_", " ")
                raise ValueError(f"this pipeline has no {what}: pass prompt_embeds and negative_prompt_embeds instead")

        if (prompt is None) == (prompt_embeds is None):
            raise ValueError(
                f"exactly one of prompt and prompt_embeds must be given: got {'none' if prompt is None else 'both'}"
            )
        for name, value in (("prompt", prompt), ("negative_prompt", negative_prompt)):
            items = value if isinstance(value, list) else [value]
            if value is not None and (not items or not all(isinstance(x, str) for x in items)):
                raise ValueError(f"{name} must be a text or a list of texts: got {_shown(value)}")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("at most one of negative_prompt and negative_prompt_embeds may be given: got both")
        for name, embeds, mask in (
            ("prompt", prompt_embeds, prompt_attention_mask),
            ("negative_prompt", negative_prompt_embeds, negative_prompt_attention_mask),
        ):
            shape = tuple(embeds.shape) if isinstance(embeds, torch.Tensor) else ()
            channels = self.unet.config.cross_attention_dim
            if embeds is not None and (len(shape) != 3 or shape[2] != channels or 0 in shape[1:]):
                got = f"shape {shape}" if shape else _shown(embeds)
                raise ValueError(f"{name}_embeds must have shape (prompts, tokens, {channels}): got {got}")
            if embeds is not None and not embeds.is_floating_point():
                raise ValueError(f"{name}_embeds must be floating point: got {embeds.dtype}")
            fits = isinstance(mask, torch.Tensor) and embeds is not None and mask.shape == embeds.shape[:2]
            if mask is not None and not fits:
                raise ValueError(
                    f"{name}_attention_mask goes with {name}_embeds, one entry for each token: got mask "
                    f"{tuple(getattr(mask, 'shape', ()))}, embeds {None if embeds is None else shape}"
                )
        count = len(prompt_embeds) if prompt is None else len(prompt) if isinstance(prompt, list) else 1
        if count == 0:
            raise ValueError("prompt_embeds must have one entry for each of one or more prompts: got none")
        for name, value in (("negative_prompt", negative_prompt), ("negative_prompt_embeds", negative_prompt_embeds)):
            if value is not None and not isinstance(value, str) and len(value) not in (1, count):
                raise ValueError(f"{name} needs one entry, or one for each of {count} prompts: got {len(value)}")


def _shown(value: Any) -> str:
    """The beginning of a value's `repr`, on one line."""
    return " ".join(reprlib.repr(value).split())


def _is_number(value: Any, kind: type = numbers.Real) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and abs(value) < 2**63  # what tensors take; no NaN


def _check_unet(unet: torch.nn.Module | None) -> None:
    if unet is not None and not hasattr(unet.config, "sample_mean"):
        raise ValueError(
            "unet must be one whose config has the data's sample_mean and sample_std, as that of MezzotintUNetModel: "
            f"got {type(unet).__name__}"
        )


def _tensor_inputs(callback: Any, names: list[str] | None) -> list[str]:
    """The names of the tensors that a callback is handed; one of diffusers' own (`diffusers.callbacks`) names them
    itself."""
    return getattr(callback, "tensor_inputs", names) or []
# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""All that lies between a call's inputs and its result, whatever the task: a text is encoded, timesteps are chosen, a
sample is denoised step by step under guidance, and its normalisation is undone. What inputs may be is in
`inputs_mezzotint.py`.

Shared by all pipelines: in a saved one this text stands in place of the line that imports it. `spatial` is a sample's
size without batch and channels: (height, width) of pictures.
"""

import copy
import inspect
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import rescale_noise_cfg
from diffusers.hooks import PyramidAttentionBroadcastConfig
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging, scale_lora_layers
from diffusers.utils.torch_utils import randn_tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


logger = logging.get_logger(__name__)

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()
# Held while what the calls of several threads have in common is set for one of them: the scheduler's timesteps, the
# tokenizer's padding
ONE_AT_A_TIME = threading.Lock()
# Held by a call for as long as its network keeps features from step to step (diffusers' `enable_cache`)
WITH_CACHE = threading.RLock()


def _seen_without_defaults(init: Callable) -> Callable:
    """What diffusers reads from the signature: `DiffusionPipeline.from_pretrained(folder, guider=mine)` would pass over
    the component given for an argument that has a default."""
    signature = inspect.signature(init)
    bare = [x.replace(default=inspect.Parameter.empty) for x in signature.parameters.values()]
    init.__signature__ = signature.replace(parameters=bare)  # pyright: ignore[reportFunctionMemberAccess]
    return init


class MezzotintSamplingMixin(MezzotintInputsMixin):
    """The components that a sample is drawn with, and the steps that all tasks share. A task's class adds `__call__`.

    Args:
        unet (`MezzotintUNetModel`): predicts what the scheduler's `prediction_type` says. Its config holds the scale
            of the data (`sample_mean`, `sample_std`) and the default size (`sample_size`).
        scheduler (`MezzotintScheduler` or a stock one made from its config): the noise levels and the step.
        text_encoder (a `transformers` encoder, or `None` with a U-Net that reads no text).
        tokenizer (the encoder's tokenizer, or `None`).
        guider (one of `diffusers.guiders`, *optional*): combines the network's predictions in place of classifier-free
            guidance; its own settings then stand for `guidance_scale` and `guidance_rescale`. Those that change layers
            (`PerturbedAttentionGuidance`, `SkipLayerGuidance`, `AutoGuidance`) must be told which, with the `fqn` of a
            block's transformer layers, as `LayerSkipConfig([0], fqn="mid_block.transformer_layers")`.
            `SmoothedEnergyGuidance` and `MagnitudeAwareGuidance` don't work in diffusers 0.42 and are refused.
        guidance_unet (`MezzotintUNetModel`, *optional*): a worse version of `unet` (smaller, or trained for less long),
            whose prediction for the same text stands where that for the negative text stood: autoguidance,
            <https://huggingface.co/papers/2406.02507>.
        classifier (`MezzotintClassifier`, *optional*): its gradient draws the pictures to the `class_labels` of a call
            (<https://huggingface.co/papers/2105.05233>).
    """

    model_cpu_offload_seq = "text_encoder->unet"
    _optional_components = ["text_encoder", "tokenizer", "guider", "guidance_unet", "classifier"]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "prompt_attention_mask"]

    @_seen_without_defaults
    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        text_encoder: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
        guider: BaseGuidance | None = None,
        guidance_unet: ModelMixin | None = None,
        classifier: ModelMixin | None = None,
    ):
        super().__init__()
        networks = {
            "unet": unet,
            "text_encoder": text_encoder,
            "guidance_unet": guidance_unet,
            "classifier": classifier,
        }
        for name, network in networks.items():
            if network is not None and not isinstance(network, torch.nn.Module):
                raise ValueError(f"{name} must be a torch.nn.Module: got {_shown(network)}")
        _check_unet(unet)
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            guider=guider,
            guidance_unet=guidance_unet,
            classifier=classifier,
        )
        # With 4 channels for those of latents, its default, a picture with transparency would not be normalised
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, vae_latent_channels=0, do_resize=False)
        self._guidance_scale = 1.0
        self._interrupt = False
        self._origin = None  # of the copy that a call makes, the pipeline
        self._said: set[str] = set()

    # ------------------------------------------------------------------------------------------------- conditioning

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
    ):
        """The text encoder's hidden states for prompts and negative prompts, repeated `num_images_per_prompt` times.

        Args:
            prompt (`str` or list of `str`, *optional*): needed unless `prompt_embeds` is given.
            device (`torch.device`, *optional*): where to; by default where the pipeline runs.
            num_images_per_prompt (`int`): pictures for each prompt.
            do_classifier_free_guidance (`bool`): whether the negative ones are wanted at all.
            negative_prompt (`str` or list of `str`, *optional*): what to steer away from; the empty text by default.
            prompt_embeds (`torch.Tensor` of shape `(prompts, tokens, channels)`, *optional*): in place of `prompt`.
            negative_prompt_embeds (`torch.Tensor`, *optional*): in place of `negative_prompt`.
            prompt_attention_mask (`torch.Tensor` of shape `(prompts, tokens)`, *optional*): of `prompt_embeds`.
            negative_prompt_attention_mask (`torch.Tensor`, *optional*): of `negative_prompt_embeds`.

        Returns:
            `(prompt_embeds, negative_prompt_embeds, prompt_attention_mask, negative_prompt_attention_mask)`, the
            negative ones `None` without guidance. All four have the same number of tokens.
        """
        device = device or self._execution_device
        if prompt_embeds is None:
            prompt_embeds, prompt_attention_mask = self._encode_text(prompt, device)
        elif prompt_attention_mask is None:
            prompt_attention_mask = torch.ones(prompt_embeds.shape[:2], dtype=torch.bool)
        if do_classifier_free_guidance:
            if negative_prompt_embeds is None:
                texts = negative_prompt if isinstance(negative_prompt, list) else [negative_prompt or ""]
                negative_prompt_embeds, negative_prompt_attention_mask = self._encode_text(texts, device)
            elif negative_prompt_attention_mask is None:
                negative_prompt_attention_mask = torch.ones(negative_prompt_embeds.shape[:2], dtype=torch.bool)
            if len(negative_prompt_embeds) == 1:
                negative_prompt_embeds = negative_prompt_embeds.expand(len(prompt_embeds), -1, -1)
                negative_prompt_attention_mask = negative_prompt_attention_mask.expand(len(prompt_embeds), -1)
            length = max(prompt_embeds.shape[1], negative_prompt_embeds.shape[1])
            negative_prompt_embeds, negative_prompt_attention_mask = self._fit(
                negative_prompt_embeds, negative_prompt_attention_mask, length, num_images_per_prompt, device
            )
        else:
            length = prompt_embeds.shape[1]
            negative_prompt_embeds = negative_prompt_attention_mask = None
        prompt_embeds, prompt_attention_mask = self._fit(
            prompt_embeds, prompt_attention_mask, length, num_images_per_prompt, device
        )
        return prompt_embeds, negative_prompt_embeds, prompt_attention_mask, negative_prompt_attention_mask

    def _encode_text(self, text: str | list[str], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if self.text_encoder is None:
            raise ValueError("this pipeline has no text encoder: pass negative_prompt_embeds, or guidance_scale=1")
        text = [text] if isinstance(text, str) else text
        config = self.text_encoder.config
        limit = min(self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or 512)
        with ONE_AT_A_TIME:
            tokens = self.tokenizer(text, padding="longest", truncation=True, max_length=limit, return_tensors="pt")
            whole = self.tokenizer(text, truncation=False).input_ids
        for words in whole:
            if len(words) > limit:
                cut = self.tokenizer.decode(words[limit - 1 :], skip_special_tokens=True)
                shown = repr(cut) if len(cut) <= 200 else f"{cut[:100]!r} and so on, {len(cut)} characters"
                logger.warning(f"The text encoder takes {limit} tokens; this part of a prompt was cut off: {shown}")
        mask = tokens.attention_mask.to(device)
        output = self.text_encoder(tokens.input_ids.to(device), attention_mask=mask)
        return output.last_hidden_state, mask.bool()  # (P, L, D), (P, L)

    def _fit(self, embeds, mask, length: int, repeats: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Pad to `length` tokens, repeat each row, move and cast."""
        missing = length - embeds.shape[1]
        dtype = embeds.dtype if self.unet is None else self.unet.dtype  # prompts can be encoded before there is a U-Net
        embeds = F.pad(embeds.to(device, dtype), (0, 0, 0, missing)).repeat_interleave(repeats, dim=0)
        mask = F.pad(mask.to(device).bool(), (0, missing)).repeat_interleave(repeats, dim=0)
        return embeds, mask

    def prepare_conditions(
        self,
        guidance: MezzotintGuidance,
        num_images_per_prompt: int,
        prompt,
        negative_prompt,
        prompt_embeds,
        negative_prompt_embeds,
        prompt_attention_mask,
        negative_prompt_attention_mask,
        prompts: int = 1,
    ):
        """The conditions that steer each picture of a call: its text, the text to steer away from if there is such
        guidance, and its label. `prompts` is the number of prompts where neither texts nor labels give it.

        Returns:
            `((prompt_embeds, prompt_attention_mask), guidance, batch_size)`: the first two hold negative and positive
            in one batch where there are both, and are `None` of a network without text.
        """
        device = self._execution_device
        if guidance.labels is not None:
            labels = (
                guidance.labels.flatten().tolist() if isinstance(guidance.labels, torch.Tensor) else guidance.labels
            )
            guidance = guidance._replace(labels=self.classifier.get_label_ids(labels))
            prompts = len(guidance.labels) if prompts == 1 else prompts
        if self.unet.config.cross_attention_dim is not None:
            prompt_embeds, negative_prompt_embeds, prompt_attention_mask, negative_prompt_attention_mask = (
                self.encode_prompt(
                    prompt,
                    device,
                    num_images_per_prompt,
                    self.guidance_unet is None and (guidance.guider is not None or self.do_classifier_free_guidance),
                    negative_prompt,
                    prompt_embeds,
                    negative_prompt_embeds,
                    prompt_attention_mask,
                    negative_prompt_attention_mask,
                )
            )
            prompts = len(prompt_embeds) // num_images_per_prompt
            if negative_prompt_embeds is not None:
                prompt_embeds = torch.cat([negative_prompt_embeds, prompt_embeds])
                prompt_attention_mask = torch.cat([negative_prompt_attention_mask, prompt_attention_mask])
        if guidance.labels is not None:
            if len(guidance.labels) not in (1, prompts):
                got = len(guidance.labels)
                raise ValueError(f"class_labels needs one entry, or one for each of {prompts} prompts: got {got}")
            labels = guidance.labels.to(device).expand(prompts).repeat_interleave(num_images_per_prompt)
            guidance = guidance._replace(labels=labels)
        return (prompt_embeds, prompt_attention_mask), guidance, prompts * num_images_per_prompt

    # ----------------------------------------------------------------------------------------------- before the loop

    def for_one_call(self, guidance: MezzotintGuidance, cross_attention_kwargs: dict[str, Any] | None = None):
        """A copy of the pipeline that holds what changes in a call, and that a callback is handed: calls of several
        threads, and one within a callback, leave each other alone. The pipeline itself says how the call that began
        last is guided, and then how the one that ended last was.

        Raises:
            ValueError: for `cross_attention_kwargs` other than `{"scale": number}`.
        """
        given = {} if cross_attention_kwargs is None else cross_attention_kwargs
        scale = given.get("scale", 1.0) if isinstance(given, dict) and given.keys() <= {"scale"} else None
        if not _is_number(scale):
            raise ValueError(f"cross_attention_kwargs must be {{'scale': number}}: got {_shown(given)}")
        run, guider = copy.copy(self), guidance.guider
        for name in ("unet", "text_encoder"):
            network = getattr(self, name)
            if scale != 1 and getattr(network, "peft_config", None):  # it has adapters
                setattr(run, name, network := _with_hooks_of_its_own(network))
                scale_lora_layers(network, scale)
        run._origin = self
        run._guidance_scale = guidance.scale if guider is None else getattr(guider, "guidance_scale", 1.0)
        run._interrupt = False
        self._guidance_scale, self._interrupt = run._guidance_scale, False
        return run

    def choose_timesteps(
        self, guidance: MezzotintGuidance, num_inference_steps, timesteps, sigmas, strength: float = 1.0
    ) -> torch.Tensor:
        """The timesteps of the call that this copy of the pipeline is for, the last `strength` of those that the
        scheduler chooses. From here on the copy has a scheduler of its own."""
        scale = self._guidance_scale if guidance.guider is not None or self.do_classifier_free_guidance else 1.0
        with ONE_AT_A_TIME:  # the pipeline's scheduler keeps what it worked out; the steps are taken by a copy
            schedule = self.retrieve_timesteps(num_inference_steps, self._execution_device, timesteps, sigmas, scale)
            self.scheduler = copy.copy(self.scheduler)
        order = getattr(self.scheduler, "order", 1)  # Heun's, for one, has two timesteps for a step
        steps = num_inference_steps if timesteps is None and sigmas is None else -(-len(schedule) // order)
        first = (steps - min(int(steps * strength), steps)) * order
        if first >= len(schedule):
            raise ValueError(f"strength must leave one of {steps} steps, at least {1 / steps:.4g}: got {strength}")
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(first)  # or every step would look its timestep up, and wait for the device
        self._num_timesteps = self._origin._num_timesteps = len(schedule) - first
        return schedule[first:]

    def draw_noise(self, batch_size: int, spatial: Sequence[int], generator, latents) -> torch.Tensor:
        """Standard normal noise (or `latents`) in float32, of shape `(batch_size, channels, *spatial)` with the sizes
        rounded up to what the U-Net can halve."""
        # A U-Net of an older file has no patches and does not say it
        factor = getattr(self.unet, "downsample_factor", 2 ** (len(self.unet.config.block_out_channels) - 1))
        shape = (batch_size, self.unet.config.in_channels, *(-(-size // factor) * factor for size in spatial))
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"a list of generators needs one for each picture: got {len(generator)} for {batch_size}")
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        elif latents.shape != shape:
            raise ValueError(f"latents must have shape {shape}: got {tuple(latents.shape)}")
        return latents.to(self._execution_device, torch.float32)

    def retrieve_timesteps(
        self, num_inference_steps, device, timesteps, sigmas, guidance_scale: float = 1.0
    ) -> torch.Tensor:
        """Set the scheduler's timesteps from a count, fitted at a guidance scale like this one where there are some, or
        from custom `timesteps` or `sigmas` where it takes them."""
        if timesteps is not None and sigmas is not None:
            raise ValueError("at most one of timesteps and sigmas may be given: got both")
        accepted = inspect.signature(self.scheduler.set_timesteps).parameters
        for name, value in (("timesteps", timesteps), ("sigmas", sigmas)):
            if value is not None:
                if name not in accepted:
                    raise ValueError(f"{type(self.scheduler).__name__}.set_timesteps takes no custom {name}")
                self.scheduler.set_timesteps(**{name: value}, device=device)
                return self.scheduler.timesteps
        fitted = {"guidance_scale": guidance_scale} if "guidance_scale" in accepted else {}
        self.scheduler.set_timesteps(num_inference_steps, device=device, **fitted)
        table = getattr(self.scheduler, "fitted_schedule", None)
        if table is not None and table["guidance_scale"] != guidance_scale:
            said = (
                f"The schedule of {num_inference_steps} steps was fitted at guidance_scale "
                f"{table['guidance_scale']:g}, the nearest to {guidance_scale:g} that there is"
            )
            if said not in self._said:
                logger.warning(said)
            self._said.add(said)
        return self.scheduler.timesteps

    def _noise_levels(self, timesteps: torch.Tensor) -> list[float]:
        """sigma_t / alpha_t at each (fractional) timestep."""
        if hasattr(self.scheduler, "timesteps_to_sigmas"):
            return self.scheduler.timesteps_to_sigmas(timesteps).tolist()
        if not hasattr(self.scheduler, "alphas_cumprod"):
            raise ValueError(
                f"guidance_interval needs a scheduler with alphas_cumprod: got {type(self.scheduler).__name__}"
            )
        # a stock scheduler: its betas interpolated in log(sigma), as it does where it turns a sigma into a timestep
        a = self.scheduler.alphas_cumprod.double().clamp(min=torch.finfo(torch.float32).tiny).cpu().numpy()
        return np.exp(np.interp(timesteps.double().cpu(), np.arange(len(a)), np.log((1 - a) / a) / 2)).tolist()

    @staticmethod
    def _read_text(network, embeds: torch.Tensor | None, mask: torch.Tensor | None) -> dict[str, Any]:
        """The arguments by which `network` reads a text: projected ahead, where it can do that."""
        if embeds is None:
            return {}
        project_text = getattr(network, "project_text", None)
        text = project_text(embeds, mask) if project_text is not None else None
        if text is not None:
            return {"encoder_hidden_states": text}
        return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}

    # ---------------------------------------------------------------------------------------------------- sampling

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        two = self.guidance_unet is not None or self.unet.config.cross_attention_dim is not None
        return self._guidance_scale > 1 and two

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._interrupt or (self._origin is not None and self._origin._interrupt)

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Keep a layer on the accelerator only for as long as it works, as diffusers' method of that name. Raises
        `ValueError` for a CPU."""
        if device is not None and torch.device(device).type == "cpu":
            raise ValueError(f"device must be an accelerator, to which layers come from the CPU: got {str(device)!r}")
        super().enable_sequential_cpu_offload(gpu_id, device)  # pyright: ignore[reportAttributeAccessIssue]

    def denoise(
        self,
        latents: torch.Tensor,
        schedule: torch.Tensor,
        text: tuple[torch.Tensor | None, torch.Tensor | None],
        guidance: MezzotintGuidance,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        callback_on_step_end: Callable[[Any, int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        after_step: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
        num_resamples: int = 1,
    ) -> torch.Tensor:
        """Denoise `latents` along the `schedule` until clean data is left: the network and the scheduler take turns.
        Called on a copy that `for_one_call` made and `choose_timesteps` set.

        Args:
            latents (`torch.Tensor` of shape `(pictures, channels, *spatial)`): float32, at the first timestep's level.
            schedule (`torch.Tensor` of shape `(steps,)`): the timesteps.
            text: embeddings and mask as `prepare_conditions` returns them.
            guidance (`MezzotintGuidance`): likewise.
            after_step (function, *optional*): what a task makes of the sample after each step, before a callback sees
                it: of the sample and the step's number, counted from 0.
            num_resamples (`int`): times that each step is taken; before each but the first the sample is noised again
                to the level that the step begins at (RePaint, <https://huggingface.co/papers/2201.09865>, algorithm 1).

        Raises:
            ValueError: where the result is not finite, and for what a callback may not return.
        """
        # 1. What each step costs: the timesteps that are guided, and how the scheduler steps
        prompt_embeds, prompt_attention_mask = text
        within = [True] * len(schedule)
        if guidance.interval is not None:
            low, high = guidance.interval
            within = [low < sigma <= high for sigma in self._noise_levels(schedule)]
        accepted = inspect.signature(self.scheduler.step).parameters
        step_kwargs = {k: v for k, v in {"eta": eta, "generator": generator}.items() if k in accepted}
        guider = copy.copy(guidance.guider)  # it comes back as it was
        guider_enabled = guider is not None and guider.get_state()["enabled"]

        # 2. A branch is a network and its rows of the text, which it reads once a call, not once a step
        rows, negative_rows = slice(-len(latents), None), slice(len(latents))
        unet, guidance_unet = self.unet, self.guidance_unet
        caches = any(getattr(network, "is_cache_enabled", False) for network in (unet, guidance_unet))
        one_state = isinstance(getattr(unet, "_cache_config", None), PyramidAttentionBroadcastConfig)
        if one_state and (guider is not None or self.do_classifier_free_guidance and not all(within)):
            raise ValueError(
                "pyramid attention broadcast keeps the attention of one batch for all steps: got a guider or a "
                "guidance_interval, under which batches differ; TaylorSeerCacheConfig goes with both"
            )
        if guider is not None and type(guider).prepare_models is not BaseGuidance.prepare_models:  # it changes layers
            unet, guidance_unet = _with_hooks_of_its_own(unet), _with_hooks_of_its_own(guidance_unet)
        branches = {"both": (unet, slice(None)), "cond": (unet, rows), "uncond": (unet, negative_rows)}
        if guidance_unet is not None:
            branches["uncond"] = (guidance_unet, rows)
        dtype, texts = self.unet.dtype, {}

        def predict(branch: str, model_input: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            network, rows = branches[branch]
            if branch not in texts:
                text = (x if x is None else x[rows] for x in (prompt_embeds, prompt_attention_mask))
                texts[branch] = self._read_text(network, *text)
            with network.cache_context(branch) if caches else nullcontext():  # what it keeps is the branch's own
                output = network(model_input.to(dtype), timestep, **texts[branch], return_dict=False)[0]
            return output.float()  # the steps are taken in float32 whatever the network's precision

        # 3. Step by step
        before: Any = None  # the scheduler as the step found it
        steps = [(i, t, again) for i, t in enumerate(schedule) for again in range(num_resamples)]
        with WITH_CACHE if caches else nullcontext(), self.progress_bar(total=len(steps)) as progress_bar:
            for i, t, again in steps:
                if self.interrupt:
                    continue
                if num_resamples > 1:
                    if again:
                        latents, self.scheduler = self._noised_again(latents, schedule, i, before, generator), before
                    before = copy.deepcopy(self.scheduler)
                model_input = self.scheduler.scale_model_input(latents, t)
                if guider is not None:
                    if guider_enabled:
                        guider.enable() if within[i] else guider.disable()
                    guider.set_state(step=i, num_inference_steps=len(schedule), timestep=t)
                    batches = guider.prepare_inputs({"branch": ("cond", "uncond")})
                    for batch in batches:
                        network = branches[batch.branch][0]
                        guider.prepare_models(network)
                        batch.noise_pred = predict(batch.branch, model_input, t)
                        guider.cleanup_models(network)
                    model_output = guider(batches)[0]
                elif within[i] and self.do_classifier_free_guidance:
                    if guidance_unet is None:  # both branches in one batch
                        uncond, cond = predict("both", torch.cat([model_input] * 2), t).chunk(2)
                    else:
                        uncond, cond = predict("uncond", model_input, t), predict("cond", model_input, t)
                    # uncond + w (cond - uncond), to the bit, in one piece of memory
                    model_output = (cond - uncond).mul_(self.guidance_scale).add_(uncond)
                    if guidance.rescale > 0:
                        model_output = rescale_noise_cfg(model_output, cond, guidance.rescale)
                else:
                    model_output = predict("cond", model_input, t)
                if guidance.labels is not None and within[i]:
                    gradient = self.classifier.score(model_input, t, guidance.labels)
                    model_output = self.scheduler.guide(model_output, t, guidance.classifier_scale * gradient)
                latents = self.scheduler.step(model_output, t, latents, **step_kwargs, return_dict=False)[0]
                if after_step is not None:
                    latents = after_step(latents, i)

                if callback_on_step_end is not None:
                    callback_kwargs = {}
                    for k in _tensor_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs):
                        callback_kwargs[k] = locals()[k]
                    callback_outputs = callback_on_step_end(self, i, t, callback_kwargs) or {}
                    if not isinstance(callback_outputs, dict):
                        raise ValueError(f"a callback must return tensors by name: got {_shown(callback_outputs)}")
                    latents, shape = callback_outputs.pop("latents", latents), latents.shape
                    if not isinstance(latents, torch.Tensor) or latents.shape != shape:
                        got = tuple(latents.shape) if isinstance(latents, torch.Tensor) else _shown(latents)
                        raise ValueError(f"latents of a callback must have shape {tuple(shape)}: got {got}")
                    if callback_outputs.keys() & {"prompt_embeds", "prompt_attention_mask"}:
                        before = 0 if prompt_embeds is None else len(prompt_embeds)
                        prompt_embeds = callback_outputs.pop("prompt_embeds", prompt_embeds)
                        prompt_attention_mask = callback_outputs.pop("prompt_attention_mask", prompt_attention_mask)
                        # without the negative ones it may go on where nothing needs them any more
                        possible = {before, len(latents) if guider is None else before}
                        if prompt_embeds is not None and len(prompt_embeds) not in possible:
                            said, got = " or ".join(map(str, sorted(possible))), len(prompt_embeds)
                            raise ValueError(f"prompt_embeds of a callback must have {said} rows: got {got}")
                        texts.clear()
                progress_bar.update()
            self._origin.maybe_free_model_hooks()
        self._origin._guidance_scale = self._guidance_scale  # where a callback left it, as a stock pipeline says

        if not latents.isfinite().all():
            raise ValueError(
                "the network must predict finite numbers, but these weights, in this precision and with this guidance, "
                "ended in others: there is no picture"
            )
        return latents

    def _noised_again(self, latents: torch.Tensor, schedule: torch.Tensor, i: int, before: Any, generator):
        """The sample after step `i` with so much noise more that it is at the level at which the step began, where the
        scheduler was as in `before`."""
        (alpha, sigma), (next_alpha, next_sigma) = self._level(before, schedule[i]), (1.0, 0.0)
        if i + 1 < len(schedule):
            next_alpha, next_sigma = self._level(self.scheduler, schedule[i + 1])
        ratio = alpha / next_alpha
        noise = randn_tensor(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)
        return ratio * latents + max(sigma**2 - (ratio * next_sigma) ** 2, 0.0) ** 0.5 * noise

    @staticmethod
    def _level(scheduler: Any, timestep: torch.Tensor) -> tuple[float, float]:
        """What clean data and noise are multiplied with at a timestep, in the scale of the scheduler's samples."""
        one, zero = torch.ones(1, 1, 1, 1, device=timestep.device), torch.zeros(1, 1, 1, 1, device=timestep.device)
        pairs = ((one, zero), (zero, one))
        data, noise = (float(scheduler.add_noise(*pair, timestep.reshape(1))) for pair in pairs)
        return data, noise

    def decode(self, latents: torch.Tensor, spatial: Sequence[int]) -> torch.Tensor:
        """Data in [-1, 1], of shape `(pictures, channels, *spatial)`: `latents` without normalisation and padding."""
        config = self.unet.config
        mean, std = (
            torch.tensor(x, device=latents.device).reshape(1, -1, *[1] * len(spatial))
            for x in (config.sample_mean, config.sample_std)
        )
        return (latents * std + mean)[(..., *(slice(size) for size in spatial))]


def _with_hooks_of_its_own(network: torch.nn.Module | None) -> torch.nn.Module | None:
    """The modules again, around the same weights: what is hooked to them is not hooked to those of other calls."""
    weights = [*network.parameters(), *network.buffers()] if network is not None else []
    return copy.deepcopy(network, {id(tensor): tensor for tensor in weights})

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()


class MezzotintPipeline(MezzotintSamplingMixin, MezzotintCheckpointMixin, DiffusionPipeline):
    """Text-to-image generation with classifier-free guidance (<https://huggingface.co/papers/2207.12598>), or another.
    Its components are described at `MezzotintSamplingMixin`."""

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 20,
        timesteps: list[float] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 2.0,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] | None = None,
        guider: BaseGuidance | None = None,
        class_labels: int | str | list[int] | list[str] | torch.Tensor | None = None,
        classifier_scale: float = 1.0,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' signature)
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Draw pictures. Threads may share the pipeline, with generators of their own, and a callback may call it.

        Args:
            prompt (`str` or list of `str`, *optional*): what to draw. Needed by a pipeline that reads text, unless
                `prompt_embeds` is given.
            height (`int`, *optional*): of the pictures, in pixels; by default the size trained at. Any size: one that
                the U-Net cannot halve often enough is drawn larger and cropped.
            width (`int`, *optional*): likewise.
            num_inference_steps (`int`): denoising steps.
            timesteps (list of numbers, *optional*): the timesteps themselves, where the scheduler takes them.
            sigmas (list of `float`, *optional*): the noise levels themselves, where the scheduler takes them.
            guidance_scale (`float`): weight w of guidance in `uncond + w (cond - uncond)`, above 1; 1 turns it off and
                halves the cost. Where the scheduler has fitted schedules it takes that of the nearest scale.
            guidance_rescale (`float`): 0 to 1, how far the guided prediction's deviation is brought back to the
                conditional one's (<https://huggingface.co/papers/2305.08891>, section 3.4).
            guidance_interval (`(float, float)`, *optional*): guide at noise levels `low < sigma <= high` only, sigma
                the ratio sigma_t / alpha_t at a step's timestep (<https://huggingface.co/papers/2404.07724>);
                outside, the step costs one branch. Of every kind of guidance.
            guider (one of `diffusers.guiders`, *optional*): in place of the pipeline's own. It works on a copy, and
                comes back as it was.
            class_labels (number or name, list of them or `torch.Tensor`, *optional*): what the classifier is to see:
                one, or one for each prompt. Of a pipeline that reads no text, as many pictures as labels are drawn.
            classifier_scale (`float`): weight of the classifier's gradient.
            negative_prompt (`str` or list of `str`, *optional*): stands for "uncond" above in place of the empty text.
            num_images_per_prompt (`int`): pictures for each prompt, side by side in the result.
            eta (`float`): noise added in each step, for schedulers that take it (DDIM).
            generator (`torch.Generator`, or a list of one for each picture, *optional*): makes a call repeatable; with
                a list each picture depends on its own generator alone, whatever the batch.
            latents (`torch.Tensor` of shape `(pictures, channels, height, width)`, *optional*): the starting noise.
            prompt_embeds (`torch.Tensor` of shape `(prompts, tokens, channels)`, *optional*): in place of `prompt`.
            negative_prompt_embeds (`torch.Tensor`, *optional*): in place of `negative_prompt`.
            prompt_attention_mask (`torch.Tensor` of shape `(prompts, tokens)`, *optional*): 1 where there is text.
            negative_prompt_attention_mask (`torch.Tensor`, *optional*): likewise.
            output_type (`"pil"`, `"np"`, `"pt"` or `"latent"`): PIL images, arrays `(pictures, height, width,
                channels)` or tensors `(pictures, channels, height, width)` in [0, 1], or the normalised sample itself.
            return_dict (`bool`): whether an `ImagePipelineOutput` or the tuple `(images,)` comes back.
            callback_on_step_end (`Callable`, *optional*): `callback(pipe, step, timestep, tensors)` after every
                step; the tensors that it returns replace the pipeline's own. `pipe` is a copy of this pipeline for this
                call alone: with `pipe._guidance_scale` and `pipe._interrupt` it steers this call and no other.
            callback_on_step_end_tensor_inputs (list of `str`): which of `latents`, `prompt_embeds` and
                `prompt_attention_mask` it gets; with guidance the last two hold negative and positive in one batch. The
                network reads a text when it is new: with adapters changed in between, what they make of a text stays.
                One of `diffusers.callbacks` says itself what it gets.
            cross_attention_kwargs (`dict`, *optional*): `{"scale": number}` multiplies the weight of all adapters
                (LoRA) of the U-Net and the text encoder in this call; 0 draws as without them.

        Raises:
            ValueError: for inputs that contradict each other or that the components cannot take, and where the result
                is not finite.
        """
        # 1. Check the inputs and settle the size
        size = self.unet.config.sample_size
        default_height, default_width = size if isinstance(size, (list, tuple)) else (size, size)
        height = default_height if height is None else height
        width = default_width if width is None else width
        guider = self.guider if guider is None else guider
        guidance = MezzotintGuidance(
            guidance_scale, guidance_rescale, guidance_interval, guider, class_labels, classifier_scale
        )
        text = (
            prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            prompt_attention_mask,
            negative_prompt_attention_mask,
        )
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        steps = (num_inference_steps, timesteps, sigmas)
        counts = {"height": height, "width": width}
        self.check_inputs(*steps, num_images_per_prompt, eta, generator, latents, output_type, *callback, **counts)
        self.check_guidance(guidance)
        self.check_text(*text)

        # 2. What changes in a call is a copy's
        run = self.for_one_call(guidance, cross_attention_kwargs)

        # 3. Encode the text, and that to steer away from where there is guidance by one
        text, guidance, batch_size = run.prepare_conditions(guidance, num_images_per_prompt, *text)

        # 4. Choose the timesteps; the noise starts at the level of the first one
        schedule = run.choose_timesteps(guidance, *steps)
        latents = run.draw_noise(batch_size, (height, width), generator, latents) * run.scheduler.init_noise_sigma

        # 5. Denoise
        latents = run.denoise(latents, schedule, text, guidance, eta, generator, *callback)

        # 6. Back to pixels
        images = latents
        if output_type != "latent":
            images = self.image_processor.postprocess(self.decode(latents, (height, width)), output_type=output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)
