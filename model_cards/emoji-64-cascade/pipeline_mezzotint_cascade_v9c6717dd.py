# Joined from pipeline_mezzotint_cascade.py, checkpoint_mezzotint.py, inputs_mezzotint.py, sampling_mezzotint.py, conditions_mezzotint.py, guidance_mezzotint.py, latents_mezzotint.py, upscaling_mezzotint.py
# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""A cascade (<https://huggingface.co/papers/2106.15282>; Imagen, <https://huggingface.co/papers/2205.11487>): a base
draws a small picture of a text, and one or two upscalers that read the same text draw it again, each larger.

Only the order of these steps lives here. The file travels inside checkpoints, joined with the shared ones that it
imports; components arrive as arguments.
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.guiders import BaseGuidance
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Checks of a call's inputs, whatever the task: each raises in one line, with the rule and what it got.

Shared by all pipelines: in a saved one this text stands in place of the line that imports it.
"""

import difflib
import inspect
import math
import numbers
import reprlib
from collections.abc import Iterable
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
        attributes: what is said beside the text, one or one for each prompt; in the loop a `torch.Tensor` of shape
            `(pictures, features)`.
        attribute_scale (`dict`, *optional*): weights of some of them, each for itself.
        thresholding (`float`, *optional*): the quantile of |x_0| that x_0 is thresholded at in every step.
    """

    scale: float
    rescale: float
    interval: tuple[float, float] | None
    guider: BaseGuidance | None
    labels: Any
    classifier_scale: float
    attributes: Any = None
    attribute_scale: dict[str, float] | None = None
    thresholding: float | None = None


class MezzotintInputsMixin:
    """Checks the inputs of a call against the components."""

    unet: Any
    scheduler: Any
    text_encoder: Any
    tokenizer: Any
    guidance_unet: Any
    classifier: Any
    check_space: Any
    _callback_tensor_inputs: list[str]
    # What people see of a task where they choose one: its name, and a line on what to do
    title: str = "Text to image"
    summary: str = "Write what is to be drawn."
    # What is drawn: its modality, a word for it, the argument that says how many, and the forms that it comes in
    modality: str = "image"
    word: str = "picture"
    per_prompt: str = "num_images_per_prompt"
    output_types: tuple[str, ...] = ("pil", "np", "pt", "latent")
    # Tasks that a network may be trained for whose samples a pipeline draws, first the one that it is for
    tasks: tuple[str, ...] = ("text_to_image", "inpaint", "upscale", "layout")
    needs: tuple[str, ...] = ()  # optional components without which it draws nothing

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
        corrector_steps=0,
        snr=0.16,
        **counts,
    ) -> None:
        """Raises `ValueError` in one line for an impossible argument, one of `counts` (whole numbers by name) among
        them. Guidance and text have checks of their own."""
        _check_unet(self.unet)
        self.check_space()
        self.check_modality()
        if (task := self.trained_for["task"]) not in self.tasks:
            best = {"text_to_image": "MezzotintPipeline", "inpaint": "MezzotintInpaintPipeline"}
            best |= {"upscale": "MezzotintUpscalePipeline", "segment": "MezzotintSegmentPipeline"}
            best |= {"layout": "MezzotintLayoutPipeline", "unclip": "MezzotintPriorPipeline"}
            raise ValueError(
                f"{type(self).__name__} needs weights that are trained for {' or '.join(self.tasks)}: got some for "
                f"{task}, which {best.get(task, 'a newer version of mezzotint')} takes"
            )
        if not hasattr(self.scheduler, "init_noise_sigma"):  # a flow-matching one
            raise ValueError(
                "scheduler must be one that holds a diffusion's noise schedule, such as DDIMScheduler: got "
                f"{type(self.scheduler).__name__}"
            )
        if output_type not in self.output_types:
            raise ValueError(
                f"output_type must be one of {', '.join(map(repr, self.output_types))}: got {output_type!r}"
            )
        counts[self.per_prompt] = num_images_per_prompt
        if timesteps is None and sigmas is None:
            counts["num_inference_steps"] = num_inference_steps
        for name, value in counts.items():
            if not _is_number(value, numbers.Integral) or value < 1:
                raise ValueError(f"{name} must be a positive whole number: got {_shown(value)}")
        if not _is_number(eta) or eta < 0:
            raise ValueError(f"eta must be a finite number of at least 0: got {_shown(eta)}")
        if not _is_number(corrector_steps, numbers.Integral) or corrector_steps < 0:
            raise ValueError(f"corrector_steps must be a whole number of at least 0: got {_shown(corrector_steps)}")
        if not _is_number(snr) or snr <= 0:
            raise ValueError(f"snr must be a finite number above 0: got {_shown(snr)}")
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

    def check_modality(self) -> None:
        """Raises `ValueError` in one line for weights that draw something else."""
        if (drawn := (getattr(self.unet.config, "modality", None) or {"name": "image"})["name"]) != self.modality:
            best = {"image": "MezzotintPipeline", "audio": "MezzotintAudioPipeline"}
            best |= {"video": "MezzotintVideoPipeline", "voxels": "MezzotintVoxelPipeline"}
            best |= {"molecules": "MezzotintMoleculePipeline"}
            raise ValueError(
                f"{type(self).__name__} needs weights that draw samples of modality {self.modality}: got some of "
                f"modality {drawn}, which {best.get(drawn, 'a newer version of mezzotint')} takes"
            )

    @property
    def reads_prompts(self) -> bool:
        """Whether a call takes a text."""
        return self.text_encoder is not None

    @property
    def trained_for(self) -> dict[str, Any]:
        """The task that the U-Net is trained for, by its config: its name as `task`, and what goes with it;
        `{"task": "text_to_image"}` where the config says nothing."""
        return dict(getattr(self.unet.config, "condition", None) or {"task": "text_to_image"})

    @staticmethod
    def settle_strength(strength: Any, sample: dict[str, Any], mask: dict[str, Any]) -> float:
        """The part of the steps that is taken from a sample on: by default 0.8, or 1 where a mask says what of it is
        drawn; 1 where none is given. Both come by the argument's name. Raises `ValueError` in one line for an
        impossible one."""
        ((name, given),), ((masked, drawn),) = sample.items(), mask.items()
        if given is None:
            if drawn is not None or strength is not None:
                raise ValueError(f"{'strength' if drawn is None else masked} goes with {name}: got it alone")
            return 1.0
        strength = (0.8 if drawn is None else 1.0) if strength is None else strength
        if not _is_number(strength) or not 0 < strength <= 1:
            raise ValueError(f"strength must be above 0 and at most 1: got {_shown(strength)}")
        return strength

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
        ratio = guidance.thresholding
        if ratio is not None and (not _is_number(ratio) or not 0 < ratio <= 1):
            raise ValueError(f"dynamic_thresholding_ratio must be a number above 0 and up to 1: got {_shown(ratio)}")
        if ratio is not None and getattr(self, "vae", None) is not None:
            raise ValueError("dynamic_thresholding_ratio is of pixels, and this network draws latents: leave it out")
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
        known = getattr(self.unet.config, "attributes", None) or {}
        self._check_attributes(known, guidance)
        if guidance.labels is not None and self.classifier is None and "class_labels" not in known:
            raise ValueError(
                "class_labels are for a network that reads them, or a classifier, which this pipeline does not have: "
                "leave them out"
            )
        if guidance.labels is not None and "class_labels" not in known and not hasattr(self.scheduler, "guide"):
            raise ValueError(
                f"class_labels need a scheduler that can guide, such as MezzotintScheduler: got "
                f"{type(self.scheduler).__name__}"
            )

    @staticmethod
    def _attributes_of(known: dict[str, list[Any]], guidance: MezzotintGuidance) -> list[dict[str, Any]] | None:
        """The attributes of a call, the label among them where the network reads it: one `dict`, or one for each
        prompt; `None` where nothing is said. Raises `ValueError` in one line for what is no such thing."""
        said = guidance.attributes
        every: list[Any] = said if isinstance(said, list) else [said] if said is not None else []
        if not all(isinstance(one, dict) for one in every) or said == []:
            raise ValueError(f"attributes must be a dict of names and values, or a list of them: got {_shown(said)}")
        if guidance.labels is None or "class_labels" not in known:
            return every or None
        labels = _listed(guidance.labels)
        every = every or [{}]
        if 1 not in (len(labels), len(every)) and len(labels) != len(every):
            raise ValueError(f"class_labels and attributes must be as many: got {len(labels)} and {len(every)}")
        count = max(len(labels), len(every))
        labels, every = (some * (count if len(some) == 1 else 1) for some in (labels, every))
        return [{**one, "class_labels": label} for one, label in zip(every, labels, strict=True)]

    def _check_attributes(self, known: dict[str, list[Any]], guidance: MezzotintGuidance) -> None:
        """Raises `ValueError` in one line for attributes that the network does not read."""
        every, scales = self._attributes_of(known, guidance) or [], guidance.attribute_scale
        for name, value in [pair for one in every for pair in one.items()]:
            _check_known(known, name, "attributes")
            about = known[name]
            if isinstance(about[0], str):
                numbered = _is_number(value, numbers.Integral) or isinstance(value, torch.Tensor)
                if value not in about and not (numbered and 0 <= int(value) < len(about)):
                    near = difflib.get_close_matches(str(value), about, 1)
                    raise ValueError(f"{name} must be one of {_shown(list(about))}: got {_shown(value)}"
                                     f"{f'; near it is {near[0]!r}' if near else ''}")  # fmt: skip
            elif not _is_number(value):
                raise ValueError(f"{name} must be a finite number: got {_shown(value)}")
        if scales is not None and not (isinstance(scales, dict) and all(map(_is_number, scales.values()))):
            raise ValueError(f"attribute_guidance_scale must be a dict of names and numbers: got {_shown(scales)}")
        for name in scales or {}:
            _check_known(known, name, "attribute_guidance_scale")
        if scales and guidance.guider is not None:
            raise ValueError("attribute_guidance_scale is of classifier-free guidance: leave it or the guider out")

    def prompt_or_none(self, prompt, prompt_embeds, count: int) -> Any:
        """The prompt; for a task that needs none `count` empty ones, where the network reads text and is given none."""
        if prompt is None and prompt_embeds is None and self.unet.config.cross_attention_dim is not None:
            return [""] * count
        return prompt

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


def _check_known(known: dict[str, list[Any]], name: Any, argument: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(str(name), known, 1)
        hint = f"; near it is {near[0]!r}" if near else ""
        raise ValueError(f"{argument} must be among {sorted(known) or 'none'}: got {_shown(name)}{hint}")


def _listed(labels: Any) -> list[Any]:
    """Class labels as a list, however they are given. Raises `ValueError` for none."""
    labels = labels.flatten().tolist() if isinstance(labels, torch.Tensor) else labels
    labels = list(labels) if isinstance(labels, Iterable) and not isinstance(labels, str) else [labels]
    if not labels:
        raise ValueError("class_labels must be one, or one for each prompt: got none")
    return labels


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
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging, scale_lora_layers
from diffusers.utils.torch_utils import randn_tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Conditions that a network reads beside the noisy sample and its text. Training and sampling make them by the same
functions.

Where it is trained for a task: a picture, and a last channel that says how little is known of it, 0 being all and 1
nothing. Where it reads attributes, classes and numbers: a vector.

Nothing known, zeros and a last channel of ones, is the same for all tasks: it is what training drops conditions to.

In a saved pipeline this text stands in place of the line that imports it.
"""

import math
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()


def picture_condition(picture: torch.Tensor) -> torch.Tensor:
    """A picture of which all is known.

    Args:
        picture (`torch.Tensor` of shape `(B, C, H, W)`): in [-1, 1].

    Returns:
        `torch.Tensor` of shape `(B, C + 1, H, W)`.
    """
    return F.pad(picture, (0, 0, 0, 0, 0, 1))


def masked_condition(picture: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A picture with a hole, as Stable Diffusion's inpainting has it.

    Args:
        picture (`torch.Tensor` of shape `(B, C, H, W)`): normalised.
        mask (`torch.Tensor` of shape `(B, 1, H, W)`): 1 where nothing is known, 0 elsewhere.

    Returns:
        `torch.Tensor` of shape `(B, C + 1, H, W)`.
    """
    return torch.cat([picture * (1 - mask), mask], dim=1)


def enlarged_condition(
    small: torch.Tensor, size: tuple[int, int], level: torch.Tensor, noise: torch.Tensor | None = None
) -> torch.Tensor:
    """A small picture that is enlarged, with noise of a known level that hides what may be wrong with it: conditioning
    augmentation (cascaded diffusion, <https://huggingface.co/papers/2106.15282>, section 4.2). It is mixed in before
    the picture is enlarged, so that a level hides as much at any scale.

    Args:
        small (`torch.Tensor` of shape `(B, C, h, w)`): normalised.
        size: `(H, W)` to enlarge it to.
        level (`torch.Tensor` of shape `(B,)`): standard deviation of the noise, in [0, 1]; what stays of the picture
            has `sqrt(1 - level^2)`.
        noise (`torch.Tensor` of shape `(B, C, h, w)`, *optional*): standard normal; not needed at level 0.

    Returns:
        `torch.Tensor` of shape `(B, C + 1, H, W)`.
    """
    level = level.to(small).reshape(-1, 1, 1, 1)
    if noise is not None:
        small = (1 - level.square()).sqrt() * small + level * noise
    large = F.interpolate(small, size, mode="bicubic", align_corners=False)
    return torch.cat([large, level.expand(len(small), 1, *size)], dim=1)


def class_bits(num_classes: int) -> int:
    """The number of bits that tell so many classes apart."""
    return max(1, math.ceil(math.log2(num_classes)))


def classes_to_bits(classes: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Class numbers as analog bits, -1 and 1 (<https://huggingface.co/papers/2208.04202>, section 2).

    Args:
        classes (`torch.Tensor` of shape `(B, 1, *spatial)`): whole numbers below `num_classes`.

    Returns:
        `torch.Tensor` of shape `(B, class_bits(num_classes), *spatial)`, float32, the lowest bit first.
    """
    places = torch.arange(class_bits(num_classes), device=classes.device).reshape(1, -1, *[1] * (classes.ndim - 2))
    return ((classes.long() >> places) & 1).float() * 2 - 1


def bits_to_classes(bits: torch.Tensor, num_classes: int) -> torch.Tensor:
    """The inverse of `classes_to_bits` for any numbers, by their signs; codes beyond the classes are the last class.

    Returns:
        `torch.Tensor` of shape `(B, H, W)`, int64.
    """
    places = torch.arange(bits.shape[1], device=bits.device).reshape(1, -1, 1, 1)
    return ((bits > 0).long() << places).sum(dim=1).clamp(max=num_classes - 1)


def bits_to_shares(bits: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Probabilities of the classes, given the means of their analog bits: a bit of mean `b` is 1 with probability
    `(1 + b) / 2`, independently of the others. Codes beyond the number of classes count as the last class.

    Args:
        bits (`torch.Tensor` of shape `(B, class_bits(num_classes), H, W)`): the lowest bit first; cut to [-1, 1].

    Returns:
        `torch.Tensor` of shape `(B, num_classes, H, W)`, whose sums over the classes are 1.
    """
    chances = (1 + bits.clamp(-1, 1)) / 2
    shares = torch.ones_like(chances[:, :1])
    for one in chances.split(1, dim=1):
        shares = torch.cat([shares * (1 - one), shares * one], dim=1)  # (B, 2, H, W), (B, 4, H, W), …
    last = shares[:, num_classes - 1 :].sum(dim=1, keepdim=True)
    return torch.cat([shares[:, : num_classes - 1], last], dim=1)


def attribute_vector(known: Mapping[str, list[Any]], values: Mapping[str, Any]) -> torch.Tensor:
    """Attributes as a network reads them: a class as one of as many numbers as there are, a number as its distance from
    the mean in standard deviations and a one, in the order of their names. Zeros are an attribute of which nothing is
    known.

    Args:
        known: of each attribute its classes, or mean and standard deviation (the U-Net's `attributes`).
        values: of some of them a number, or a class by its name or its place among them; all known.

    Returns:
        `torch.Tensor` of shape `(features,)`, float32.
    """
    parts = []
    for name, about in sorted(known.items()):
        part = torch.zeros(len(about))
        if name in values and isinstance(about[0], str):
            value = values[name]
            part[about.index(value) if isinstance(value, str) else int(value)] = 1
        elif name in values:
            part[0], part[1] = (float(values[name]) - about[0]) / about[1], 1
        parts.append(part)
    return torch.cat(parts)


def attributes_without(known: Mapping[str, list[Any]], vectors: torch.Tensor, names: Container[str]) -> torch.Tensor:
    """Vectors of `attribute_vector`, of shape `(B, features)`, with nothing known of some of the attributes."""
    vectors, first = vectors.clone(), 0
    for name, about in sorted(known.items()):
        if name in names:
            vectors[:, first : first + len(about)] = 0
        first += len(about)
    return vectors
# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The guided prediction at one step: the branches of a call, each a network with its rows of the text and what is said
beside it, and how their predictions are combined.

Only this lives here; which steps are taken, and what follows from the output, is `sampling_mezzotint.py`'s. The file
travels inside checkpoints, joined with the pipelines.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import rescale_noise_cfg
from diffusers.hooks import PyramidAttentionBroadcastConfig


# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()


class MezzotintGuidedNetwork:
    """The network of a call under its guidance: takes a noisy sample, returns one prediction.

    Args:
        run: the pipeline's copy for one call, of which networks, scheduler and guidance scale are taken.
        latents (`torch.Tensor` of shape `(pictures, channels, *spatial)`): a sample, for its shape.
        text: embeddings and mask as `prepare_conditions` returns them.
        guidance (`MezzotintGuidance`): likewise.
        within: for each step, whether it is guided.
        condition (`torch.Tensor` of shape `(pictures, channels, *spatial)`, *optional*): what the network reads beside
            the sample; by default, for a network that reads something, that nothing is known.
        evaluate (function, *optional*): takes a network with the arguments of its call, and returns its prediction, in
            the place of that call.

    Raises:
        ValueError: for a cache that does not go with the guidance.
    """

    def __init__(
        self,
        run: Any,
        latents: torch.Tensor,
        text: tuple[torch.Tensor | None, torch.Tensor | None],
        guidance: MezzotintGuidance,
        within: Sequence[bool],
        condition: torch.Tensor | None = None,
        evaluate: Callable[..., torch.Tensor] | None = None,
    ):
        self.run, self.guidance, self.within, self.evaluate = run, guidance, within, evaluate
        self.text, self.texts = text, {}
        self.guider = guider = copy.copy(guidance.guider)  # it comes back as it was
        self.guider_enabled = guider is not None and guider.get_state()["enabled"]
        unet, guidance_unet = run.unet, run.guidance_unet
        self.dtype, self.autoguided = unet.dtype, guidance_unet is not None
        self.caches = any(getattr(network, "is_cache_enabled", False) for network in (unet, guidance_unet))
        one_state = isinstance(getattr(unet, "_cache_config", None), PyramidAttentionBroadcastConfig)
        if one_state and (guider is not None or run.do_classifier_free_guidance and not all(within)):
            raise ValueError(
                "pyramid attention broadcast keeps the attention of one batch for all steps: got a guider or a "
                "guidance_interval, under which batches differ; TaylorSeerCacheConfig goes with both"
            )
        if guider is not None and type(guider).prepare_models is not BaseGuidance.prepare_models:  # it changes layers
            unet, guidance_unet = _with_hooks_of_its_own(unet), _with_hooks_of_its_own(guidance_unet)
        # Attributes with a weight of their own come in one after the other, over all that has the usual one
        said, scales = guidance.attributes, guidance.attribute_scale or {}
        nothing = usual = None
        self.rungs: dict[str, tuple[float, torch.Tensor]] = {}
        if said is not None:
            nothing, usual, *more = (
                attributes_without(unet.config.attributes, said, names)
                for names in (unet.config.attributes, *(list(scales)[i:] for i in range(len(scales) + 1)))
            )
            self.rungs = {f"with {name}": (scales[name], vector) for name, vector in zip(scales, more, strict=True)}
        rows, negative_rows = slice(-len(latents), None), slice(len(latents))
        self.branches = {
            "both": (unet, slice(None), None if nothing is None else torch.cat([nothing, usual])),
            "cond": (unet, rows, usual),
            "uncond": (unet, negative_rows, nothing),
            "all": (unet, rows, said),
            **{name: (unet, rows, vector) for name, (_, vector) in self.rungs.items()},
        }
        if self.autoguided:
            self.branches["uncond"] = (guidance_unet, rows, usual)
        self.condition = condition
        if condition is None and unet.config.in_channels > unet.config.out_channels:
            channels = unet.config.in_channels - unet.config.out_channels
            self.condition = latents.new_zeros(len(latents), channels, *latents.shape[2:])
            self.condition[:, -1] = 1  # nothing is known

    def read(self, prompt_embeds: torch.Tensor | None, prompt_attention_mask: torch.Tensor | None) -> None:
        """Take another text from here on."""
        self.text, self.texts = (prompt_embeds, prompt_attention_mask), {}

    def __call__(self, model_input: torch.Tensor, timestep: torch.Tensor, i: int) -> torch.Tensor:
        """The prediction for a sample, as the scheduler scales it, at step `i`, in float32."""
        guided, run = self.within[i], self.run
        if self.guider is not None:
            model_output = cond = self._by_guider(model_input, timestep, i)
        elif guided and run.do_classifier_free_guidance:
            if self.autoguided:
                uncond, cond = (self._predict(branch, model_input, timestep) for branch in ("uncond", "cond"))
            else:  # both branches in one batch
                uncond, cond = self._predict("both", torch.cat([model_input] * 2), timestep).chunk(2)
            # uncond + w (cond - uncond), to the bit, in one piece of memory
            model_output = (cond - uncond).mul_(run.guidance_scale).add_(uncond)
            if self.guidance.rescale > 0:
                model_output = rescale_noise_cfg(model_output, cond, self.guidance.rescale)
        else:
            model_output = cond = self._predict("cond" if guided else "all", model_input, timestep)
        if guided and self.guider is None:
            for branch, (scale, _) in self.rungs.items():
                found = self._predict(branch, model_input, timestep)
                model_output, cond = model_output + scale * (found - cond), found
        if self.guidance.labels is not None and guided:
            gradient = run.classifier.score(model_input, timestep, self.guidance.labels)
            model_output = run.scheduler.guide(model_output, timestep, self.guidance.classifier_scale * gradient)
        return model_output

    def _by_guider(self, model_input: torch.Tensor, timestep: torch.Tensor, i: int) -> torch.Tensor:
        """The prediction as one of diffusers' guiders combines it."""
        guider: Any = self.guider
        if self.guider_enabled:
            guider.enable() if self.within[i] else guider.disable()
        guider.set_state(step=i, num_inference_steps=len(self.within), timestep=timestep)
        batches = guider.prepare_inputs({"branch": ("cond", "uncond")})
        for batch in batches:
            network = self.branches[batch.branch][0]
            guider.prepare_models(network)
            batch.noise_pred = self._predict(batch.branch, model_input, timestep)
            guider.cleanup_models(network)
        return guider(batches)[0]

    def _predict(self, branch: str, model_input: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The prediction of a branch, whose text is read once a call, not once a step."""
        network, rows, attributes = self.branches[branch]
        if self.condition is not None:
            beside = torch.cat([self.condition] * (len(model_input) // len(self.condition)))
            model_input = torch.cat([model_input, beside], dim=1)
        if branch not in self.texts:
            text = (x if x is None else x[rows] for x in self.text)
            self.texts[branch] = self.run._read_text(network, *text)
            if attributes is not None:
                self.texts[branch]["attributes"] = attributes.to(self.dtype)
        with network.cache_context(branch) if self.caches else nullcontext():  # what it keeps is the branch's own
            if self.evaluate is None:
                output = network(model_input.to(self.dtype), timestep, **self.texts[branch], return_dict=False)[0]
            else:
                output = self.evaluate(network, model_input.to(self.dtype), timestep, **self.texts[branch])
        return output.float()  # the steps are taken in float32 whatever the network's precision


def _with_hooks_of_its_own(network: torch.nn.Module | None) -> torch.nn.Module | None:
    """The modules again, around the same weights: what is hooked to them is not hooked to those of other calls."""
    weights = [*network.parameters(), *network.buffers()] if network is not None else []
    return copy.deepcopy(network, {id(tensor): tensor for tensor in weights})
# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The space that a sample is drawn in, and the way from there to pixels and back: pixels themselves, or the latents of
an autoencoder (<https://huggingface.co/papers/2112.10752>), each brought to unit variance by the network's config.

Shared by all pipelines: in a saved one this text stands in place of the line that imports it. Training takes latents
by the same functions.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()


def vae_factor(vae: Any) -> int:
    """Pixels along each axis that make one latent, by the config of an autoencoder of diffusers; 1 for `None`.

    Raises:
        ValueError: for one whose config does not say it.
    """
    if vae is None:
        return 1
    levels = vae.config.get("block_out_channels") or vae.config.get("encoder_block_out_channels")
    if not levels:
        raise ValueError(
            "vae must be one whose config has block_out_channels or encoder_block_out_channels, as AutoencoderKL, "
            f"AutoencoderTiny and AutoencoderDC: got {type(vae).__name__}"
        )
    return 2 ** (len(levels) - 1)


def to_latents(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The latents of pixels in [-1, 1], as the autoencoder has them, in float32; of a distribution its mode."""
    found = vae.encode(pixels.to(vae.dtype), return_dict=False)[0]
    return (found if isinstance(found, torch.Tensor) else found.mode()).float()


def to_pixels(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_latents`, as far as the autoencoder has it."""
    return vae.decode(latents.to(vae.dtype), return_dict=False)[0].float()


class MezzotintLatentMixin:
    """Takes pixels to samples and samples to pixels."""

    unet: Any
    vae: Any
    maybe_free_model_hooks: Any
    check_modality: Any

    @property
    def vae_scale_factor(self) -> int:
        """Pixels along each axis for one element of a sample; 1 where pixels are drawn."""
        return vae_factor(self.vae)

    @property
    def channels(self) -> int:
        """Channels of the pictures that are drawn, and of those that are read."""
        return self.unet.config.out_channels if self.vae is None else self.vae.config.in_channels

    @property
    def default_size(self) -> tuple[int | None, ...]:
        """The size that the U-Net was trained at, where it says so: of pictures height and width in pixels."""
        self.check_modality()
        size = self.unet.config.sample_size
        sizes = (
            tuple(size) if isinstance(size, (list, tuple)) else (size,) * getattr(self.unet.config, "spatial_dims", 2)
        )
        return tuple(side and side * self.vae_scale_factor for side in sizes)

    def check_space(self) -> None:
        """Raises `ValueError` in one line for an autoencoder whose latents are not what the U-Net draws."""
        if self.vae is None or self.unet is None:
            return
        vae_factor(self.vae)
        channels, drawn = self.vae.config.get("latent_channels"), self.unet.config.out_channels
        if channels != drawn:
            raise ValueError(f"unet must draw the latents of the vae, of {channels} channels: got out_channels {drawn}")
        if (task := (getattr(self.unet.config, "condition", None) or {}).get("task", "inpaint")) != "inpaint":
            raise ValueError(f"weights that are trained to {task} draw pixels: got them with an autoencoder (vae)")

    def padded(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """The sizes of the sample that holds data of the size `spatial`, rounded up to what the U-Net can halve."""
        # A U-Net of an older file has no patches and does not say it
        factor = getattr(self.unet, "downsample_factor", 2 ** (len(self.unet.config.block_out_channels) - 1))
        factors, pixels = getattr(self.unet, "downsample_factors", [factor] * len(spatial)), self.vae_scale_factor
        return tuple(-(-size // (x * pixels)) * x for size, x in zip(spatial, factors, strict=False))

    def _scale(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each channel of the data."""
        config, shape = self.unet.config, (1, -1, *[1] * (like.ndim - 2))
        mean, std = (torch.tensor(x).to(like).reshape(shape) for x in (config.sample_mean, config.sample_std))
        return mean, std

    def encode(self, image: torch.Tensor, spatial: Sequence[int]) -> torch.Tensor:
        """The inverse of `decode`: `image` with its edges drawn out, as a sample of the size `spatial` with the
        network's normalisation."""
        if self.vae is not None:
            image = self.drawn_out(image, [size * self.vae_scale_factor for size in spatial])
            image = to_latents(self.vae, image)
        mean, std = self._scale(image)
        return self.drawn_out((image - mean) / std, spatial)

    def decode(self, latents: torch.Tensor, spatial: Sequence[int]) -> torch.Tensor:
        """Data in [-1, 1], of shape `(pictures, channels, *spatial)`: `latents` without normalisation, taken to pixels
        by the autoencoder where there is one, and without padding."""
        mean, std = self._scale(latents)
        data = latents * std + mean
        if self.vae is not None:
            data = to_pixels(self.vae, data)
            self.maybe_free_model_hooks()
        return data[(..., *(slice(size) for size in spatial))]

    @staticmethod
    def drawn_out(pictures: torch.Tensor, spatial: Sequence[int]) -> torch.Tensor:
        """Pictures (B, C, H, W), or other data (B, C, *S), at the size `spatial`: their last rows and columns are
        repeated."""
        missing = [whole - size for whole, size in zip(spatial, pictures.shape[2:], strict=True)]
        return F.pad(pictures, [x for size in reversed(missing) for x in (0, size)], mode="replicate")

    def covered(self, mask: torch.Tensor, spatial: Sequence[int]) -> torch.Tensor:
        """The part of a sample of the size `spatial` that is to be drawn, of shape `(pictures, 1, *spatial)`: what any
        pixel of 1 in `mask` (pictures, 1, height, width) has a part in, and all padding."""
        factor = self.vae_scale_factor
        height, width = (whole * factor - size for whole, size in zip(spatial, mask.shape[2:], strict=True))
        mask = F.pad(mask, (0, width, 0, height), value=1.0)
        return F.max_pool2d(mask, factor) > 0

    # ------------------------------------------------------------------------------------- memory of the autoencoder

    def enable_vae_slicing(self) -> None:
        """Let the autoencoder take one picture at a time: less memory. Raises `ValueError` without one."""
        self._its_vae().enable_slicing()

    def disable_vae_slicing(self) -> None:
        """The inverse of `enable_vae_slicing`."""
        self._its_vae().disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Let the autoencoder take large pictures tile by tile: less memory. Raises `ValueError` without one."""
        self._its_vae().enable_tiling()

    def disable_vae_tiling(self) -> None:
        """The inverse of `enable_vae_tiling`."""
        self._its_vae().disable_tiling()

    def _its_vae(self) -> Any:
        if self.vae is None:
            raise ValueError("this pipeline draws pixels: got no autoencoder (vae) to slice or tile")
        return self.vae

logger = logging.get_logger(__name__)

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()
# Held while what the calls of several threads have in common is set for one of them: the scheduler's timesteps, the
# tokenizer's padding
ONE_AT_A_TIME = threading.Lock()
# Held by a call for as long as its network keeps features from step to step (diffusers' `enable_cache`)
WITH_CACHE = threading.RLock()


def token_limit(encoder: torch.nn.Module, tokenizer: Any) -> int:
    """The most tokens of a text that a text encoder, or the text tower of two, and its tokenizer take: those of the
    tokenizer, or as many as there are positions, or 512. Where positions are counted from behind the padding's
    (RoBERTa, <https://huggingface.co/papers/1907.11692>), no token is at those before."""
    config = getattr(encoder.config, "text_config", encoder.config)
    positions = getattr(config, "max_position_embeddings", None) or 512
    for name, layer in encoder.named_modules():
        if name.endswith("position_embeddings") and getattr(layer, "padding_idx", None) is not None:
            positions -= layer.padding_idx + 1
    return min(tokenizer.model_max_length, positions)


def _seen_without_defaults(init: Callable) -> Callable:
    """Hide a signature's defaults from diffusers: `DiffusionPipeline.from_pretrained(folder, guider=mine)` would pass
    over the component given for an argument that has a default."""
    signature = inspect.signature(init)
    bare = [x.replace(default=inspect.Parameter.empty) for x in signature.parameters.values()]
    init.__signature__ = signature.replace(parameters=bare)  # pyright: ignore[reportFunctionMemberAccess]
    return init


class MezzotintSamplingMixin(MezzotintLatentMixin, MezzotintInputsMixin):
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
        vae (`AutoencoderKL`, `AutoencoderTiny` or `AutoencoderDC` of diffusers, *optional*): the autoencoder whose
            latents `unet` draws (<https://huggingface.co/papers/2112.10752>); `sample_mean`, `sample_std` and
            `sample_size` are of latents then. Without one `unet` draws pixels.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ["text_encoder", "tokenizer", "guider", "guidance_unet", "classifier", "vae"]
    _callback_tensor_inputs = ["latents", "pred_original_sample", "prompt_embeds", "prompt_attention_mask"]
    usual_steps = 20  # of a network that is not distilled, where a call does not say

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
        vae: ModelMixin | None = None,
    ):
        super().__init__()
        networks = {
            "unet": unet,
            "text_encoder": text_encoder,
            "guidance_unet": guidance_unet,
            "classifier": classifier,
            "vae": vae,
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
            vae=vae,
        )
        self.check_space()
        # With 4 channels for those of latents, its default, a picture with transparency would not be normalised
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, vae_latent_channels=0, do_resize=False)
        self._guidance_scale = 1.0
        self._interrupt = False
        self._origin = self._device_of_call = None  # of the copy that a call makes: the pipeline, and where it works
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
        limit = token_limit(self.text_encoder, self.tokenizer)
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
        device, known = self._execution_device, getattr(self.unet.config, "attributes", None) or {}
        said = self._attributes_of(known, guidance) if known else None
        guidance = guidance._replace(attributes=None, labels=None if "class_labels" in known else guidance.labels)
        if guidance.labels is not None:
            guidance = guidance._replace(labels=self.classifier.get_label_ids(_listed(guidance.labels)))
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
        if said is not None:
            if self.unet.config.cross_attention_dim is None and prompts == 1:
                prompts = len(said)
            if len(said) not in (1, prompts):
                raise ValueError(f"attributes needs one entry, or one for each of {prompts} prompts: got {len(said)}")
            vectors = torch.stack([attribute_vector(known, one) for one in said]).to(device)
            vectors = vectors.expand(prompts, -1).repeat_interleave(num_images_per_prompt, dim=0)
            guidance = guidance._replace(attributes=vectors)
        if guidance.labels is not None:
            if len(guidance.labels) not in (1, prompts):
                got = len(guidance.labels)
                raise ValueError(f"class_labels needs one entry, or one for each of {prompts} prompts: got {got}")
            labels = guidance.labels.to(device).expand(prompts).repeat_interleave(num_images_per_prompt)
            guidance = guidance._replace(labels=labels)
        return (prompt_embeds, prompt_attention_mask), guidance, prompts * num_images_per_prompt

    # ----------------------------------------------------------------------------------------------- before the loop

    @property
    def distilled_steps(self) -> list[int] | None:
        """The numbers of steps that the network is distilled to, by the config of its scheduler, or of a stock one made
        from it; `None` where it is not distilled."""
        steps = self.scheduler.config.get("_consistency_steps")  # which a stock scheduler does not check
        return list(steps) if isinstance(steps, (list, tuple)) and steps else None

    def settle_steps(self, num_inference_steps: int | None, guidance_scale: float | None) -> tuple[int, float]:
        """The number of steps and the guidance scale of a call, where it leaves them to the pipeline: `usual_steps` and
        2, or the first of `distilled_steps` and 1 of a distilled network, which has guidance in it."""
        steps, scale = (self.usual_steps, 2.0) if self.distilled_steps is None else (self.distilled_steps[0], 1.0)
        return (
            steps if num_inference_steps is None else num_inference_steps,
            scale if guidance_scale is None else guidance_scale,
        )

    @property
    def _execution_device(self) -> torch.device:
        """Where a call works. In a call it is looked up once: diffusers goes through all modules each time."""
        return self._device_of_call or super()._execution_device  # pyright: ignore[reportAttributeAccessIssue]

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
        origin, guider = self, guidance.guider
        if self._origin is not None:  # it is of a call that goes on, which keeps its steps and its guidance
            origin = copy.copy(self)
            origin.scheduler = copy.deepcopy(self.scheduler)
        run = copy.copy(origin)
        for name in ("unet", "text_encoder"):
            network = getattr(self, name)
            if scale != 1 and getattr(network, "peft_config", None):  # it has adapters
                setattr(run, name, network := _with_hooks_of_its_own(network))
                scale_lora_layers(network, scale)
        run._origin = origin
        run._device_of_call = self._execution_device
        run._guidance_scale = guidance.scale if guider is None else getattr(guider, "guidance_scale", 1.0)
        run._interrupt = False
        origin._guidance_scale, origin._interrupt = run._guidance_scale, False
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
            state = vars(self.scheduler)  # where lists hold what the steps remember
            state.update({name: list(value) for name, value in state.items() if isinstance(value, list)})
        in_fours = getattr(self.scheduler, "prk_timesteps", None)
        if strength < 1 and in_fours is not None and len(in_fours):
            raise ValueError("strength below 1 would cut the first steps of a PNDMScheduler, four evaluations each, in "
                             "two: it needs one with skip_prk_steps=True")  # fmt: skip
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
        """Standard normal noise (or `latents`) in float32, of the shape of `batch_size` samples that hold data of the
        size `spatial`, as `padded` has it."""
        shape = (batch_size, self.unet.config.out_channels, *self.padded(spatial))
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"a list of generators needs one for each {self.word}: got {len(generator)} for {batch_size}"
            )
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
        reads = self.unet.config.cross_attention_dim is not None or getattr(self.unet.config, "attributes", None)
        return self._guidance_scale > 1 and bool(self.guidance_unet is not None or reads)

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._interrupt or (self._origin is not None and self._origin.interrupt)

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
        condition: torch.Tensor | None = None,
        evaluate: Callable[..., torch.Tensor] | None = None,
        corrector_steps: int = 0,
        snr: float = 0.16,
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
            condition (`torch.Tensor` of shape `(pictures, channels, *spatial)`, *optional*): what the network reads
                beside the sample: a picture, and a last channel that says how little is known of it, from 0 to 1. By
                default, for a network that reads one, nothing is known.
            evaluate (function, *optional*): takes a network with the arguments of its call, and returns its prediction,
                in the place of that call.
            corrector_steps (`int`): Langevin steps after each step but the last, at the level that it leads to, each an
                evaluation more (<https://huggingface.co/papers/2011.13456>, Algorithm 5). A callback sees the sample
                before them.
            snr (`float`): their signal-to-noise ratio.

        Raises:
            ValueError: where the result is not finite, for what a callback may not return, and for `corrector_steps`
                with a scheduler that has none.
        """
        # 1. What each step costs: the timesteps that are guided, and how the scheduler steps
        within = [True] * len(schedule)
        if guidance.interval is not None:
            low, high = guidance.interval
            within = [low < sigma <= high for sigma in self._noise_levels(schedule)]
        accepted = inspect.signature(self.scheduler.step).parameters
        step_kwargs = {k: v for k, v in {"eta": eta, "generator": generator}.items() if k in accepted}
        if corrector_steps and not hasattr(self.scheduler, "corrector_step"):
            raise ValueError(f"corrector_steps needs a MezzotintScheduler: got {type(self.scheduler).__name__}")
        network = MezzotintGuidedNetwork(self, latents, text, guidance, within, condition, evaluate)

        # 2. Step by step
        before: Any = None  # the scheduler as the step found it
        # below 0 are the corrector's, at the level that the step before led to
        counts = [range(-corrector_steps if i else 0, num_resamples) for i in range(len(schedule))]
        steps = [(i, t, again) for i, t in enumerate(schedule) for again in counts[i]]
        with WITH_CACHE if network.caches else nullcontext(), self.progress_bar(total=len(steps)) as progress_bar:
            for i, t, again in steps:
                if self.interrupt:
                    continue
                if num_resamples > 1 and again >= 0:
                    if again:
                        latents, self.scheduler = self._noised_again(latents, schedule, i, before, generator), before
                    before = copy.deepcopy(self.scheduler)
                model_input = self.scheduler.scale_model_input(latents, t)
                model_output = network(model_input, t, i)
                if guidance.thresholding is not None:
                    model_output = self._thresholded(model_output, t, model_input, guidance.thresholding)
                if again < 0:
                    latents = self.scheduler.corrector_step(model_output, t, latents, snr, generator)
                else:
                    latents = self.scheduler.step(model_output, t, latents, **step_kwargs, return_dict=False)[0]
                if after_step is not None:
                    latents = after_step(latents, i if again >= 0 else i - 1)
                if callback_on_step_end is not None and again >= 0:
                    names = _tensor_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)
                    tensors = dict(zip(("prompt_embeds", "prompt_attention_mask"), network.text, strict=True))
                    tensors["latents"] = latents
                    if "pred_original_sample" in names:
                        tensors["pred_original_sample"] = self._predict_original_sample(model_output, t, model_input)
                    returned = callback_on_step_end(self, i, t, {name: tensors[name] for name in names}) or {}
                    latents = self._called_back(returned, latents, network)
                progress_bar.update()
            self._origin.maybe_free_model_hooks()
        self._origin._guidance_scale = self._guidance_scale  # where a callback left it, as a stock pipeline says

        if not latents.isfinite().all():
            raise ValueError(
                "the network must predict finite numbers, but these weights, in this precision and with this guidance, "
                f"ended in others: there is no {self.word}"
            )
        return latents

    @staticmethod
    def _called_back(returned: Any, latents: torch.Tensor, network: MezzotintGuidedNetwork) -> torch.Tensor:
        """The sample as a callback leaves it, by what it `returned`; another text is the `network`'s from here on.

        Raises:
            ValueError: for what a callback may not return.
        """
        if not isinstance(returned, dict):
            raise ValueError(f"a callback must return tensors by name: got {_shown(returned)}")
        found, shape = returned.pop("latents", latents), latents.shape
        if not isinstance(found, torch.Tensor) or found.shape != shape:
            got = tuple(found.shape) if isinstance(found, torch.Tensor) else _shown(found)
            raise ValueError(f"latents of a callback must have shape {tuple(shape)}: got {got}")
        if returned.keys() & {"prompt_embeds", "prompt_attention_mask"}:
            embeds, mask = network.text
            rows = 0 if embeds is None else len(embeds)
            embeds, mask = returned.pop("prompt_embeds", embeds), returned.pop("prompt_attention_mask", mask)
            # without the negative ones it may go on where nothing needs them any more
            possible = {rows, len(found) if network.guider is None else rows}
            if embeds is not None and len(embeds) not in possible:
                said, got = " or ".join(map(str, sorted(possible))), len(embeds)
                raise ValueError(f"prompt_embeds of a callback must have {said} rows: got {got}")
            network.read(embeds, mask)
        return found

    def start_from(
        self, known: torch.Tensor | None, noise: torch.Tensor, schedule: torch.Tensor, strength: float
    ) -> torch.Tensor:
        """The sample that `denoise` begins with: `noise` at the scheduler's scale, or, with a strength below 1, the
        clean and normalised sample `known` noised to the first of the timesteps
        (SDEdit, <https://huggingface.co/papers/2108.01073>)."""
        if strength < 1:
            return self.scheduler.add_noise(known, noise, schedule[:1].expand(len(noise)))
        return noise * self.scheduler.init_noise_sigma

    def putting_back(
        self, known: torch.Tensor, drawn: torch.Tensor, noise: torch.Tensor, schedule: torch.Tensor
    ) -> Callable[[torch.Tensor, int], torch.Tensor]:
        """An `after_step` of `denoise` that puts what is known in its place, noised to the level that the step led to,
        always with the same noise.

        Args:
            known (`torch.Tensor` of the sample's shape): the clean sample, normalised.
            drawn (`torch.Tensor`, bool): true where the sample is drawn and not known; goes with its shape.
            noise (`torch.Tensor` of the sample's shape): standard normal.
            schedule (`torch.Tensor` of shape `(steps,)`): the timesteps.
        """

        def put_back(latents: torch.Tensor, i: int) -> torch.Tensor:
            level = known
            if i + 1 < len(schedule):
                level = self.scheduler.add_noise(known, noise, schedule[i + 1].expand(len(noise)))
            return torch.where(drawn, latents, level)

        return put_back

    def _noised_again(self, latents: torch.Tensor, schedule: torch.Tensor, i: int, before: Any, generator):
        """The sample after step `i` with so much noise more that it is at the level at which the step began, where the
        scheduler was as in `before`."""
        (alpha, sigma), (next_alpha, next_sigma) = self._level(before, schedule[i]), (1.0, 0.0)
        if i + 1 < len(schedule):
            next_alpha, next_sigma = self._level(self.scheduler, schedule[i + 1])
        ratio = alpha / next_alpha
        noise = randn_tensor(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)
        return ratio * latents + max(sigma**2 - (ratio * next_sigma) ** 2, 0.0) ** 0.5 * noise

    def _predict_original_sample(self, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor):
        """x_0 as the network's output at `sample`, of unit variance, implies it, whatever the scheduler."""
        if hasattr(self.scheduler, "predict_original_sample"):
            return self.scheduler.predict_original_sample(model_output, timestep, sample)
        (ratio,), kind = self._noise_levels(timestep.reshape(1)), self.scheduler.config.prediction_type
        alpha, sigma = (1 + ratio**2) ** -0.5, (1 + ratio**-2) ** -0.5
        if kind == "sample":
            return model_output
        return (sample - sigma * model_output) / alpha if kind == "epsilon" else alpha * sample - sigma * model_output

    def _thresholded(self, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, ratio: float):
        """The network's output with dynamic thresholding of the x_0 that it implies (Imagen,
        <https://huggingface.co/papers/2205.11487>, section 2.3): a picture's x_0, in the units of pixels, is clamped to
        [-s, s] and divided by s, the quantile of its |x_0|, or 1 where that is less: what is within [-1, 1] then stays
        to the bit."""
        mean, std = self._scale(sample)
        clean = self._predict_original_sample(model_output, timestep, sample) * std + mean
        s = torch.quantile(clean.flatten(1).abs(), ratio, dim=1).clamp(min=1).reshape(-1, 1, 1, 1)
        change = (clean.clamp(-s, s) / s - clean) / std
        (level,), kind = self._noise_levels(timestep.reshape(1)), self.scheduler.config.prediction_type
        alpha, sigma = (1 + level**2) ** -0.5, (1 + level**-2) ** -0.5
        if kind == "sample":
            return model_output + change
        # x_0 = (x_t - sigma_t eps) / alpha_t, and x_0 = alpha_t x_t - sigma_t v
        return model_output - change * (alpha / sigma if kind == "epsilon" else 1 / sigma)

    @staticmethod
    def _level(scheduler: Any, timestep: torch.Tensor) -> tuple[float, float]:
        """The factors of clean data and of noise at a timestep, in the scale of the scheduler's samples."""
        one, zero = torch.ones(1, 1, 1, 1, device=timestep.device), torch.zeros(1, 1, 1, 1, device=timestep.device)
        pairs = ((one, zero), (zero, one))
        data, noise = (float(scheduler.add_noise(*pair, timestep.reshape(1))) for pair in pairs)
        return data, noise
# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""A small picture drawn again, larger, by a network that reads the small one: what super-resolution and the upper
stages of a cascade share.

In a saved pipeline this text stands in place of the line that imports it.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor


# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()

UPSCALER_STEPS = 4  # where a call says nothing: the small picture settles most, and more steps add grain


class MezzotintUpscalingMixin:
    """Enlarges with noise-conditioning augmentation, in tiles where the result is larger than what was trained at."""

    unet: Any
    scheduler: Any
    padded: Any
    encode: Any
    draw_noise: Any
    denoise: Any

    @staticmethod
    def check_noise_level(noise_level: Any) -> None:
        """Raises `ValueError` in one line for what is no level of noise in a small picture."""
        if not _is_number(noise_level) or not 0 <= noise_level < 1:
            raise ValueError(f"noise_level must be a number from 0 up to 1, and below it: got {_shown(noise_level)}")

    def tiles(self, tile_size: int | None = None, tile_overlap: int | None = None) -> tuple[int, int]:
        """Pixels of a tile along each axis, rounded up to what the U-Net can halve, and those that neighbours share.
        Raises `ValueError` in one line for an overlap that leaves nothing of a tile."""
        if tile_size is None:
            trained = self.unet.config.sample_size
            tile_size = max(trained) if isinstance(trained, (list, tuple)) else trained or 64
        (tile,) = self.padded([tile_size])
        overlap = max(tile // 4, 1) if tile_overlap is None else tile_overlap
        if overlap >= tile:
            raise ValueError(f"tile_overlap must be below tile_size, {tile}: got {overlap}")
        return tile, overlap

    def enlarge(
        self,
        image: torch.Tensor,
        noise_level: float,
        tiles: tuple[int, int],
        schedule: torch.Tensor,
        text: tuple[torch.Tensor | None, torch.Tensor | None],
        guidance: MezzotintGuidance,
        eta: float,
        generator: Any,
        latents: torch.Tensor | None,
        *callback: Any,
    ) -> torch.Tensor:
        """The clean sample of pictures as many times as large as `image` as the network is trained for. Called on a
        copy that `for_one_call` made and `choose_timesteps` set.

        Args:
            image (`torch.Tensor` of shape `(pictures, channels, height, width)`): in [-1, 1].
            noise_level (`float`): in [0, 1), standard deviation of the noise that is mixed into the small pictures.
            tiles: what `tiles` returned.
            schedule, text, guidance, eta, generator, callback: as `denoise` takes them.
            latents (`torch.Tensor`, *optional*): the starting noise.
        """
        scale = self.unet.config.condition["scale"]
        latents = self.draw_noise(len(image), [scale * size for size in image.shape[2:]], generator, latents)
        image = image.to(latents)
        small = self.encode(image, tuple(-(-size // scale) for size in latents.shape[2:]))
        noise = None
        if noise_level > 0:
            noise = randn_tensor(small.shape, generator=generator, device=small.device, dtype=small.dtype)
        height, width = (scale * size for size in small.shape[2:])
        level = torch.full((len(image),), float(noise_level))
        condition = enlarged_condition(small, (height, width), level, noise)
        condition = condition[:, :, : latents.shape[2], : latents.shape[3]]
        return self.denoise(
            latents * self.scheduler.init_noise_sigma,
            schedule,
            text,
            guidance,
            eta,
            generator,
            *callback,
            condition=condition,
            evaluate=_InTiles(*tiles, self.unet.config.out_channels),
        )


class _InTiles:
    """Calls a network on overlapping tiles, which agree at every step, so that there are no seams (MultiDiffusion,
    <https://huggingface.co/papers/2302.08113>)."""

    def __init__(self, tile: int, overlap: int, channels: int):
        self.tile, self.overlap, self.channels = tile, overlap, channels

    def __call__(self, network: Any, inputs: torch.Tensor, timestep: torch.Tensor, **text: Any) -> torch.Tensor:
        corners = [_corners(size, self.tile, self.overlap) for size in inputs.shape[2:]]
        if len(corners[0]) == len(corners[1]) == 1:
            return network(inputs, timestep, **text, return_dict=False)[0]
        total = torch.zeros(len(inputs), self.channels, *inputs.shape[2:], device=inputs.device)
        weight = torch.zeros(inputs.shape[2:], device=inputs.device)
        for top, left in itertools.product(*corners):
            place = (..., slice(top, top + self.tile), slice(left, left + self.tile))
            found = network(inputs[place].contiguous(), timestep, **text, return_dict=False)[0].float()
            ramps = [_ramp(size, self.overlap, found.device) for size in found.shape[2:]]
            share = ramps[0][:, None] * ramps[1]
            total[place] += share * found
            weight[place] += share
        return total / weight


def _corners(size: int, tile: int, overlap: int) -> Sequence[int]:
    """Where the tiles of an axis begin."""
    if size <= tile:
        return [0]
    return [*range(0, size - tile, tile - overlap), size - tile]


def _ramp(size: int, overlap: int, device: torch.device) -> torch.Tensor:
    """The weight of each position of a tile, of shape `(size,)`: it falls towards both ends over the overlap."""
    place = torch.arange(size, device=device) + 0.5
    return (torch.minimum(place, size - place) / overlap).clamp(max=1)

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()


class MezzotintCascadePipeline(
    MezzotintUpscalingMixin, MezzotintSamplingMixin, MezzotintCheckpointMixin, DiffusionPipeline
):
    """Text to image in two or three stages, which share one text encoder.

    Args:
        unet, scheduler: of the base. These, `text_encoder`, `tokenizer`, `guider`, `guidance_unet`, `classifier` and
            `vae` are described at `MezzotintSamplingMixin`; the last four are the base's alone.
        unet_2 (`MezzotintUNetModel`, *optional*): the first upscaler, trained by `--task upscale` to enlarge pictures
            of the size that `unet` was trained at.
        scheduler_2 (`MezzotintScheduler` or a stock one made from its config, *optional*): that of `unet_2`.
        unet_3, scheduler_3: likewise the second upscaler, which enlarges what `unet_2` draws.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae->unet_2->unet_3"
    _optional_components = [
        *MezzotintSamplingMixin._optional_components, "unet_2", "scheduler_2", "unet_3", "scheduler_3",
    ]  # fmt: skip
    title = "Cascade"
    summary = "Write what is to be drawn. It is drawn small first, and then larger."
    tasks = ("cascade",)

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
        vae: ModelMixin | None = None,
        unet_2: ModelMixin | None = None,
        scheduler_2: SchedulerMixin | None = None,
        unet_3: ModelMixin | None = None,
        scheduler_3: SchedulerMixin | None = None,
    ):
        super().__init__(unet, scheduler, text_encoder, tokenizer, guider, guidance_unet, classifier, vae)
        self.register_modules(unet_2=unet_2, scheduler_2=scheduler_2, unet_3=unet_3, scheduler_3=scheduler_3)
        self.check_stages()

    @classmethod
    def from_stages(cls, *stages: Any) -> "MezzotintCascadePipeline":
        """One pipeline of a `MezzotintPipeline` and one or two `MezzotintUpscalePipeline`, in the order in which they
        draw, with the text encoder of the first.

        Raises:
            ValueError: for stages that do not fit together: a number of them that is none of a cascade, sizes that do
                not follow from each other, or text encoders that differ.
        """
        if not 1 <= len(stages) <= 3:
            raise ValueError(f"a cascade must have a base, and one or two upscalers: got {len(stages)} stages")
        base, *others = stages
        components = dict(base.components)
        for number, stage in enumerate(others, 2):
            if stage.unet.config.cross_attention_dim is not None and not _equal(base.text_encoder, stage.text_encoder):
                raise ValueError(
                    f"all stages must read the text by one encoder, of the same weights: got another in stage {number}"
                )
            components |= {f"unet_{number}": stage.unet, f"scheduler_{number}": stage.scheduler}
        return cls(**components)

    @property
    def stages(self) -> list[tuple[Any, Any]]:
        """The U-Net and the scheduler of each stage, in the order in which they draw."""
        pairs = [(self.unet, self.scheduler), (self.unet_2, self.scheduler_2), (self.unet_3, self.scheduler_3)]
        return [pair for pair in pairs if pair[0] is not None]

    @property
    def scales(self) -> list[int]:
        """Factors by which the upscalers enlarge, in the order in which they draw."""
        return [unet.config.condition["scale"] for unet, _ in self.stages[1:]]

    @property
    def trained_for(self) -> dict[str, Any]:
        """The cascade as its task; of the copy that draws a stage, that of the stage's network."""
        return {"task": "cascade"} if self._origin is None else super().trained_for

    @property
    def default_size(self) -> tuple[int | None, ...]:
        """Height and width in pixels of what the last stage draws, where its U-Net says so; of the copy that draws a
        stage, of that one."""
        if self._origin is not None:
            return super().default_size
        scale = math.prod(self.scales)
        return tuple(size and scale * size for size in super().default_size)

    def check_stages(self) -> None:
        """Raises `ValueError` in one line for stages that do not fit together."""
        base = self.unet
        if base is None:
            return
        if (task := super().trained_for["task"]) != "text_to_image":
            raise ValueError(f"unet must draw from text alone, as the base of a cascade: got one trained for {task}")
        size = super().default_size
        for number, before in ((2, "unet"), (3, "unet_2")):
            name, unet = f"unet_{number}", getattr(self, f"unet_{number}")
            scheduler = getattr(self, f"scheduler_{number}")
            if (unet is None) != (scheduler is None):
                missing = name if unet is None else f"scheduler_{number}"
                raise ValueError(f"{name} and scheduler_{number} go together: got no {missing}")
            if unet is None:
                continue
            if getattr(self, before) is None:
                raise ValueError(f"{name} must have {before} before it, whose pictures it enlarges: got none")
            _check_unet(unet)
            about = getattr(unet.config, "condition", None) or {"task": "text_to_image"}
            if about["task"] != "upscale":
                raise ValueError(f"{name} must be trained for upscale: got one for {about['task']}")
            if unet.config.out_channels != self.channels:
                got = unet.config.out_channels
                raise ValueError(f"{name} must draw {self.channels} channels, as the base does: got {got}")
            if unet.config.cross_attention_dim not in (None, base.config.cross_attention_dim):
                raise ValueError(
                    f"{name} must read the text of the base, of {base.config.cross_attention_dim} channels: got "
                    f"{unet.config.cross_attention_dim}"
                )
            size = tuple(side and about["scale"] * side for side in size)
            own = unet.config.sample_size
            own = tuple(own) if isinstance(own, (list, tuple)) else (own, own)
            if all(size) and all(own) and own != size:
                raise ValueError(
                    f"{name} must be trained for {size[0]}x{size[1]} pixels, {about['scale']} times what {before} "
                    f"draws: got one for {own[0]}x{own[1]}"
                )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | list[int] | None = None,
        guidance_scale: float | list[float] | None = None,
        noise_level: float | list[float] = 0.1,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] | None = None,
        guider: BaseGuidance | None = None,
        dynamic_thresholding_ratio: float | None = None,
        class_labels: int | str | list[int] | list[str] | torch.Tensor | None = None,
        classifier_scale: float = 1.0,
        attributes: dict[str, Any] | list[dict[str, Any]] | None = None,
        attribute_guidance_scale: dict[str, float] | None = None,
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
        """Draw pictures, stage by stage. Arguments that are not listed here are those of `MezzotintPipeline`, and hold
        for all stages.

        Args:
            height (`int`, *optional*): of the pictures in the end, in pixels; by default the size trained at. A
                multiple of all that the upscalers enlarge by.
            width (`int`, *optional*): likewise.
            num_inference_steps (`int` or list of `int`, *optional*): steps of the base, or of each stage; by default
                20 for the base. An upscaler that is not told of any takes 4, as it adds no more than details, and
                grain with more steps. By default a distilled stage takes those that it is distilled to.
            guidance_scale (`float` or list of `float`, *optional*): weight of the base's guidance, or of each stage's;
                by default 2 for the base. An upscaler that is not told of any has none: 1, at half the cost.
            noise_level (`float` or list of `float`): noise-conditioning augmentation: in [0, 1), standard deviation of
                the noise that is mixed into the small picture, of every upscaler or of each. More lets faults of the
                stage before be mended, and more of what was right be drawn anew.
            guider (one of `diffusers.guiders`, *optional*): in place of the base's guidance.
            class_labels, attributes: for the stages that read them; a classifier is the base's.
            generator (`torch.Generator`, or a list of one for each picture, *optional*): makes a call repeatable: each
                stage goes on drawing from it.
            latents (`torch.Tensor` of shape `(pictures, channels, height, width)` of the base, *optional*): the noise
                that the base starts from.
            output_type (`"pil"`, `"np"`, `"pt"` or `"latent"`): the last is the normalised sample of the last stage.
            callback_on_step_end (`Callable`, *optional*): as of `MezzotintPipeline`. Steps are counted through all
                stages, `pipe.num_timesteps` in all, and the tensors are of the stage's size. One that interrupts ends
                the call with the pictures of its stage.

        Raises:
            ValueError: for inputs that contradict each other or that the components cannot take, and where the result
                is not finite.
        """
        # 1. Check the inputs; each stage has its steps, its guidance and its size
        self.check_stages()
        steps, scales, levels = self._of_stages(num_inference_steps, guidance_scale, noise_level)
        guider = self.guider if guider is None else guider
        guidance = MezzotintGuidance(
            scales[0], guidance_rescale, guidance_interval, guider, class_labels, classifier_scale, attributes,
            attribute_guidance_scale, dynamic_thresholding_ratio,
        )  # fmt: skip
        text = (
            prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            prompt_attention_mask,
            negative_prompt_attention_mask,
        )
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        size = [
            usual if given is None else given for given, usual in zip((height, width), self.default_size, strict=True)
        ]
        common = (num_images_per_prompt, eta, generator, latents, output_type, *callback)
        stage, reader = copy.copy(self), copy.copy(self)
        upper = zip(self.stages[1:], scales[1:], strict=True)
        guidances = [guidance, *(_of_upscaler(guidance, unet, scale) for (unet, _), scale in upper)]
        for (reader.unet, stage.scheduler), count, its in zip(self.stages, steps, guidances, strict=True):
            stage.check_inputs(count, None, None, *common, height=size[0], width=size[1])
            reader.check_guidance(its)
        whole = math.prod(self.scales)
        if any(side % whole for side in size):
            raise ValueError(f"height and width must be multiples of {whole}: got {size[0]} and {size[1]}")
        spatial = [side // whole for side in size]
        self.check_text(*text)

        # 2. What changes in a call is a copy's: one for each stage, with its timesteps
        run = self.for_one_call(guidance, cross_attention_kwargs)
        runs = [run if i == 0 else run._at(i, scales[i]) for i in range(len(steps))]
        schedules = [
            one.choose_timesteps(its, count, None, None) for one, its, count in zip(runs, guidances, steps, strict=True)
        ]
        self._num_timesteps = total = sum(map(len, schedules))

        # 3. Read the text, once for all stages
        guided = guider is not None or any(scale > 1 for scale in scales)
        text = run._read(text, guided and self.guidance_unet is None)

        # 4. Draw, and draw again larger
        images, taken = torch.empty(0), 0
        for i, (one, its, schedule) in enumerate(zip(runs, guidances, schedules, strict=True)):
            counted = self._counted(taken, total, *callback)
            prompts = 1 if i == 0 else len(images) // num_images_per_prompt
            states, its, batch_size = one.prepare_conditions(its, num_images_per_prompt, *text, prompts=prompts)
            if i == 0:
                sample = one.draw_noise(batch_size, spatial, generator, latents) * one.scheduler.init_noise_sigma
                sample = one.denoise(sample, schedule, states, its, eta, generator, *counted)
            else:
                # as `MezzotintUpscalePipeline` would be given them
                small = self.image_processor.preprocess(self.image_processor.postprocess(images, output_type="pt"))
                tiles, level = one.tiles(), levels[i - 1]
                sample = one.enlarge(small, level, tiles, schedule, states, its, eta, generator, None, *counted)
                spatial = [self.scales[i - 1] * size for size in spatial]
            images, taken = one.decode(sample, spatial), taken + len(schedule)
            if one.interrupt:
                break

        # 5. Back to pixels
        images = (
            sample if output_type == "latent" else self.image_processor.postprocess(images, output_type=output_type)
        )
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _of_stages(self, steps: Any, scales: Any, levels: Any) -> tuple[list[int], list[float], list[float]]:
        """Steps and guidance of each stage, and the noise level of each upscaler. Raises `ValueError` in one line for
        lists of other lengths."""
        stages = self.stages
        given = {
            "num_inference_steps": (steps, len(stages), "stage"),
            "guidance_scale": (scales, len(stages), "stage"),
            "noise_level": (levels, len(stages) - 1, "upscaler"),
        }
        for name, (value, count, what) in given.items():
            if isinstance(value, (list, tuple)) and len(value) != count:
                raise ValueError(f"{name} needs one entry, or one for each {what}, of which there are {count}: got "
                                 f"{_shown(value)}")  # fmt: skip
        if not isinstance(steps, (list, tuple)):
            steps = [steps, *[None] * (len(stages) - 1)]
        if not isinstance(scales, (list, tuple)):
            scales = [scales, *[1.0] * (len(stages) - 1)]
        if not isinstance(levels, (list, tuple)):
            levels = [levels] * (len(stages) - 1)
        for level in levels:
            self.check_noise_level(level)
        settled, run = [], copy.copy(self)
        for (_, run.scheduler), *asked in zip(stages, steps, scales, strict=True):
            settled.append(run.settle_steps(*asked))
            run.usual_steps = UPSCALER_STEPS  # of all that come after the base
        if unfit := [scale for _, scale in settled if not _is_number(scale)]:
            raise ValueError(f"guidance_scale must be a finite number: got {_shown(unfit[0])}")
        return [count for count, _ in settled], [scale for _, scale in settled], list(levels)

    def _at(self, stage: int, guidance_scale: float) -> "MezzotintCascadePipeline":
        """A copy of the copy that a call made of the pipeline, to draw an upper stage by."""
        run = copy.copy(self)
        run.unet, run.scheduler = self._origin.stages[stage]
        run.vae = run.guidance_unet = run.classifier = None
        run._guidance_scale = guidance_scale
        return run

    def _read(self, text: tuple, guided: bool) -> tuple:
        """The texts of a call as the encoder's hidden states in the place of what is written."""
        prompt, negative_prompt, embeds, negative_embeds, mask, negative_mask = text
        if self.unet.config.cross_attention_dim is None:
            return text
        if embeds is None:
            embeds, mask = self._encode_text(prompt, self._execution_device)
        if guided and negative_embeds is None:
            texts = negative_prompt if isinstance(negative_prompt, list) else [negative_prompt or ""]
            negative_embeds, negative_mask = self._encode_text(texts, self._execution_device)
        return None, None, embeds, negative_embeds, mask, negative_mask

    @staticmethod
    def _counted(taken: int, total: int, callback: Any, names: list[str]) -> tuple[Any, list[str]]:
        """The callback of a call, with steps that count on from those `taken`, and what it asks for."""
        if callback is None:
            return None, names

        def counted(run: Any, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict:
            run._num_timesteps = total
            return callback(run, taken + step, timestep, tensors)

        return counted, _tensor_inputs(callback, names)


def _of_upscaler(guidance: MezzotintGuidance, unet: Any, scale: float) -> MezzotintGuidance:
    """The guidance of an upscaler, at its own scale: of what the base is told, what this network reads too."""
    known = getattr(unet.config, "attributes", None) or {}

    def read(said: Any) -> Any:
        if isinstance(said, list):
            return [read(one) for one in said]
        return {name: value for name, value in said.items() if name in known} if isinstance(said, dict) else said

    return guidance._replace(
        scale=scale,
        guider=None,
        labels=guidance.labels if "class_labels" in known else None,
        attributes=read(guidance.attributes),
        attribute_scale=read(guidance.attribute_scale) or None,
    )


def _equal(one: Any, other: Any) -> bool:
    """Whether two networks have the same weights under the same names."""
    if one is other or one is None or other is None:
        return one is other
    weights, others = one.state_dict(), other.state_dict()
    return weights.keys() == others.keys() and all(
        weights[name].shape == others[name].shape and torch.equal(weights[name], others[name].to(weights[name]))
        for name in weights
    )
