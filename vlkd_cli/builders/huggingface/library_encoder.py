"""What vision and text encoders of transformers have in common: how they are written."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from vlkd_cli.builders.backbone import Backbone, Export
from vlkd_cli.builders.huggingface.dual import AS_LOADED, PROJECTED, Origin
from vlkd_cli.builders.huggingface.save import save_encoder

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class LibraryEncoder(Backbone):
    """An encoder that is written for `AutoModel`: itself, or the dual encoder that it is a half
    of."""

    encoder: nn.Module
    config: PretrainedConfig
    origin: Origin | None
    """The dual encoder that it is a half of."""
    exported_keys: ClassVar[tuple[str, ...]]
    """Recipe keys that hold for an exported encoder as for the original."""

    def export(self, folder: Path, destination: Path, keys: Mapping[str, object]) -> Export:
        if self.origin is not None:
            self.origin.write(folder, self.encoder)
        else:
            save_encoder(self.encoder, self.config, folder)
        return self.exported(folder, destination, keys)

    def exported(self, folder: Path, destination: Path, keys: Mapping[str, object]) -> Export:
        """What prepares its inputs next to an encoder that is written, and how to load the two."""
        self.save_input(folder)
        part = ".get_encoder()" if getattr(self.config, "is_encoder_decoder", False) else ""
        trusted = ", trust_remote_code=True" if keys.get("trust") else ""
        # Without a modality, builder huggingface takes a model for one of texts.
        modality = {} if self.modality == "text" else {"modality": self.modality}
        return Export(
            "Hugging Face",
            python=f"model = transformers.AutoModel.from_pretrained({str(destination)!r}{trusted})"
            f"{part}",
            recipe={
                "builder": "huggingface",
                **modality,
                "model": str(destination),
                **{key: keys[key] for key in self.exported_keys if keys.get(key)},
            },
            feature=self.reads if self.origin is None else PROJECTED,
            note="" if self.origin is None else AS_LOADED,
        )

    @property
    @abstractmethod
    def reads(self) -> str:
        """What of the library's output the feature is."""

    @abstractmethod
    def save_input(self, folder: Path) -> None:
        """Write the tokenizer or image processor."""
