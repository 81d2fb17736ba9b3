"""Mezzotint: text-to-image diffusion models of one's own, in the diffusers ecosystem. The public surface.

Importing the package imports the modules of all classes: diffusers resolves a checkpoint's classes among the modules
that are already imported.
"""

from mezzotint.models.classifier_mezzotint import MezzotintClassifier
from mezzotint.models.unet_mezzotint import MezzotintUNetModel
from mezzotint.pipelines.modular_mezzotint import MezzotintBlocks
from mezzotint.pipelines.pipeline_mezzotint import MezzotintPipeline
from mezzotint.pipelines.pipeline_mezzotint_audio import MezzotintAudioPipeline
from mezzotint.pipelines.pipeline_mezzotint_cascade import MezzotintCascadePipeline
from mezzotint.pipelines.pipeline_mezzotint_img2img import MezzotintImg2ImgPipeline
from mezzotint.pipelines.pipeline_mezzotint_inpaint import MezzotintInpaintPipeline
from mezzotint.pipelines.pipeline_mezzotint_layout import MezzotintLayoutPipeline
from mezzotint.pipelines.pipeline_mezzotint_molecules import MezzotintMoleculePipeline
from mezzotint.pipelines.pipeline_mezzotint_prior import MezzotintPriorPipeline
from mezzotint.pipelines.pipeline_mezzotint_segment import MezzotintSegmentPipeline
from mezzotint.pipelines.pipeline_mezzotint_upscale import MezzotintUpscalePipeline
from mezzotint.pipelines.pipeline_mezzotint_variation import MezzotintVariationPipeline
from mezzotint.pipelines.pipeline_mezzotint_video import MezzotintVideoPipeline
from mezzotint.pipelines.pipeline_mezzotint_voxels import MezzotintVoxelPipeline
from mezzotint.schedulers.scheduling_mezzotint import MezzotintScheduler

__version__ = "0.1.0"
__all__ = [
    "MezzotintAudioPipeline",
    "MezzotintBlocks",
    "MezzotintCascadePipeline",
    "MezzotintClassifier",
    "MezzotintImg2ImgPipeline",
    "MezzotintInpaintPipeline",
    "MezzotintLayoutPipeline",
    "MezzotintMoleculePipeline",
    "MezzotintPipeline",
    "MezzotintPriorPipeline",
    "MezzotintScheduler",
    "MezzotintSegmentPipeline",
    "MezzotintUNetModel",
    "MezzotintUpscalePipeline",
    "MezzotintVariationPipeline",
    "MezzotintVideoPipeline",
    "MezzotintVoxelPipeline",
]
