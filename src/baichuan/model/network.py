"""The Baichuan-13B and Baichuan-7B networks for transformers 5.

Embedding, decoder layers (layers.py), final norm, head. Knows nothing of files (pretrained.py), of
bits (linears may be swapped from outside) or of text (chatting.py).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from baichuan.engine.cache import Batch, BlockPool, Chunk, SequenceCache
from baichuan.engine.sampling import check_finite
from baichuan.errors import NumericalError, UsageError
from baichuan.model import decoding
from baichuan.model.chatting import ChatMixin
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.layers import BaichuanDecoderLayer, BaichuanRMSNorm, Rotary
from baichuan.model.loss import LOSS_OPTIONS, next_token_loss
from baichuan.model.pretrained import BaichuanPreTrainedModel
from baichuan.model.quantization import QuantizeMixin
from baichuan.model.rotary import rotary_angles
from baichuan.model.segments import Segments, find_segments
from baichuan.quant.linear import QuantizedLinear

#: What transformers calls the cache, given and returned: `past_key_values` until 5.24 renamed it.
CACHE_NAME = (
    "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
)


class BaichuanModel(BaichuanPreTrainedModel):
    """Token ids to hidden states: embedding, decoder layers, final norm."""

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            BaichuanDecoderLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = BaichuanRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | Batch | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        cache: Cache | Batch | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the decoder.

        Args:
            input_ids: int64 [batch, positions]; or inputs_embeds [batch, positions, hidden].
            attention_mask: as `attention.attend` takes it: [batch, past + positions] with 0 for
                padding and equal positive integers for one segment, or [batch, positions, keys].
            position_ids: [batch, positions]; used by the 7B's RoPE alone.
            cache: a transformers cache (its new positions share one length), or a `Batch` of ragged
                chunks; last_hidden_state has only its `wanted` rows then.
            past_key_values: the same under the name that it has before transformers 5.24.

        Raises:
            UsageError: both or none of input_ids and inputs_embeds; output_attentions.
        """
        x = self._embed(input_ids, inputs_embeds)
        if kwargs.get("output_attentions"):
            raise UsageError(
                "output_attentions=True was given, but fused attention keeps no weights; "
                "output_hidden_states=True is available."
            )
        cache = past_key_values if cache is None else cache
        if self.gradient_checkpointing and self.training:
            use_cache = False
        elif use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and cache is None:
            cache = DynamicCache()
        mask = _needed_mask(attention_mask, _held(cache), x.shape[1])
        rotary = self._rotary(x, position_ids, cache)
        wanted = cache.wanted if isinstance(cache, Batch) else None
        hidden = [x]
        if not output_hidden_states and decoding.applies(self.layers, x, cache):
            angles = rotary and (rotary[0][0], rotary[1][0])
            x = decoding.decode(self.layers, x, cast(Batch, cache), angles)[:, wanted]
        else:
            for layer in self.layers:
                # The last layer's other rows are read by nobody.
                rows = wanted if layer is self.layers[-1] else None
                x = layer(x, mask=mask, rotary=rotary, cache=cache, wanted=rows)
                if output_hidden_states:
                    hidden.append(x)
        x = self.norm(x)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            hidden_states=(*hidden[:-1], x) if output_hidden_states else None,
            **{CACHE_NAME: cache if use_cache else None},
        )

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise UsageError("Give either input_ids or inputs_embeds: both or none were given.")
        if inputs_embeds is not None:
            return inputs_embeds
        try:
            return cast(Tensor, self.embed_tokens(input_ids))
        except IndexError as error:  # on GPUs the kernel stops instead
            assert input_ids is not None
            raise UsageError(
                "input_ids go from {least} to {most}; allowed are 0 to {last}. Is this another "
                "model's tokenizer?",
                least=int(input_ids.min()),
                most=int(input_ids.max()),
                last=self.config.vocab_size - 1,
            ) from error

    def _rotary(
        self, x: Tensor, position_ids: Tensor | None, cache: Cache | Batch | None
    ) -> Rotary:
        if self.config.position_embedding != "rope":
            return None
        if position_ids is None:
            position_ids = _default_positions(x, cache)
        return rotary_angles(position_ids, self.config.head_dim, self.config.rope_theta)


def _needed_mask(mask: Tensor | None, held: int, positions: int) -> Tensor | Segments | None:
    """Drop a mask that hides nothing, and read one of segments where no cache stands before it."""
    keys = held + positions
    if mask is None:
        return None
    if mask.ndim not in (2, 3) or mask.shape[-1] != keys:
        raise UsageError(
            "attention_mask has shape {shape}; allowed are [batch, keys] with segment numbers "
            "(0 = padding) and [batch, positions, keys] with 1 = visible, where keys counts what "
            "the cache holds and the new positions: {keys} here.",
            shape=list(mask.shape),
            keys=keys,
        )
    # Waits for a GPU once per pass, not per layer: cheaper than masking every layer in vain.
    if bool((mask == 1).all()):
        return None
    segments = find_segments(mask) if mask.ndim == 2 and not held else None
    return mask if segments is None else segments


def _held(cache: Cache | Batch | None) -> int:
    """Positions that a transformers cache holds; chunks carry no mask, so theirs do not matter."""
    return 0 if cache is None or isinstance(cache, Batch) else int(cache.get_seq_length())


def _default_positions(x: Tensor, cache: Cache | Batch | None) -> Tensor:
    """Positions [1, positions] that continue what the cache holds."""
    if isinstance(cache, Batch):
        spans = [
            torch.arange(len(chunk.cache), len(chunk.cache) + len(chunk.tokens))
            for chunk in cache.chunks
        ]
        return torch.cat(spans)[None].to(x.device)
    past = _held(cache)
    return torch.arange(past, past + x.shape[1], device=x.device)[None]


def refuse_damaged_weights(network: nn.Module) -> None:
    """Raise NumericalError that names a weight which is not finite, if there is one in memory."""
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
            continue
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # of shards, ours
        least, most = local.aminmax()  # at the speed of memory, unlike isfinite; NaN is both
        if not bool(least.isfinite() & most.isfinite()):
            raise NumericalError(
                "The model's outputs are not finite, for {name} holds NaN or infinity: the "
                "checkpoint is damaged, or its training diverged. Use another one.",
                name=name,
            )


class BaichuanForCausalLM(ChatMixin, QuantizeMixin, BaichuanPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The network with its language modelling head; 13B by default, 7B by configuration."""

    # Read only if the configuration says tie_word_embeddings, which the published ones do not.
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _has_finite_weights = False  # not known yet

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.model = BaichuanModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | Batch | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | Batch | None = None,
        skip_logits: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Compute logits [batch, positions, vocabulary] and, with labels, the loss.

        Args:
            labels: int64 [batch, positions]; position t is compared with labels[t + 1], -100 is
                ignored; mean cross entropy in float32.
            logits_to_keep: compute only this many last positions (0 = all), or the positions given.
            skip_logits: with labels, give the loss alone and `logits=None`, for a small part of the
                memory (loss.py); by default so in training mode.
            **kwargs: `shift_labels`, `num_items_in_batch`, `label_smoothing` and `reduction`, see
                `loss.next_token_loss`; whole logits have the loss of transformers instead.

        The other arguments are those of `BaichuanModel.forward`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=kwargs.pop("output_attentions", None),
        )
        hidden, logits, loss = outputs.last_hidden_state, None, None
        if labels is not None and (self.training if skip_logits is None else skip_logits):
            given = {name: kwargs[name] for name in LOSS_OPTIONS if name in kwargs}
            loss = next_token_loss(self.lm_head, hidden, labels, **given)
        else:
            last = isinstance(logits_to_keep, int)
            logits = self.lm_head(
                hidden[:, slice(-logits_to_keep, None) if last else logits_to_keep]
            )
            if labels is not None:
                loss = self.loss_function(
                    logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
                )
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return result if as_dict else cast("tuple[Any, ...]", result.to_tuple())

    @staticmethod
    def create_masks_for_generate(*_: Any, attention_mask: Tensor | None, **__: Any) -> Any:
        """Keep the [batch, keys] mask (`generate` would make [batch, 1, positions, buffer])."""
        return attention_mask

    def _update_model_kwargs_for_generation(
        self, outputs: Any, *given: Any, **named: Any
    ) -> dict[str, Any]:
        """Stop transformers' `generate` at damaged weights: to it NaN is the likeliest token.

        The weights are read once, whatever the first logits are, because attention in torch hides
        a position whose key is infinite.

        Raises:
            NumericalError: a weight is not finite, which is named, or the logits are not.
        """
        self._refuse_damaged_weights()
        if not bool(outputs.logits.isfinite().all()):
            check_finite(outputs.logits)
        kept = super()._update_model_kwargs_for_generation(outputs, *given, **named)
        return cast("dict[str, Any]", kept)

    @property
    def vocabulary(self) -> int:
        """Number of token ids, and of logits."""
        return int(self.config.vocab_size)

    def new_pool(self, limit: int | None = None) -> BlockPool:
        """Give a pool of cache blocks, for several sequences."""
        return BlockPool(self.config.num_hidden_layers, limit, network=weakref.ref(self))

    def new_cache(self) -> SequenceCache:
        """Give an empty cache for one sequence."""
        return SequenceCache(self.new_pool())

    @property
    def exact_rows(self) -> bool:
        """Whether all products are the native kernels'; see `engine.cache.DecoderModel`."""
        plain = isinstance(self.lm_head, QuantizedLinear)
        return plain and decoding.is_exact(self.model.layers, self.model.norm.weight)

    @torch.inference_mode()
    def forward_chunks(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """Run ragged chunks in one pass; see `engine.cache.DecoderModel`.

        Returns:
            Per chunk float32 logits [chunk.logits, vocabulary] on the CPU or GPU of the head.

        Raises:
            NumericalError: they are not finite, for a weight is not; names it.
        """
        if self.training:  # gradient checkpointing would drop the cache, LoRA would drop weights
            return self._in_evaluation(chunks)
        batch = Batch(chunks)
        flat = [token for chunk in chunks for token in chunk.tokens]
        ids = torch.tensor([flat], dtype=torch.long)
        if self.device.type != "meta":  # offloaded; accelerate moves what a module is given
            ids = ids.to(self.device)
        hidden = self.model(input_ids=ids, cache=batch, use_cache=True).last_hidden_state
        if not batch.wanted:
            batch.commit()
            return [hidden.new_empty((0, self.config.vocab_size)) for _ in chunks]
        logits = self.lm_head(hidden[0]).float()
        if not bool(logits.sum().isfinite()):
            self._refuse_damaged_weights()
        batch.commit()  # only now, so that a pass that went wrong can be run again in parts
        return list(logits.split([chunk.logits for chunk in chunks]))

    def _refuse_damaged_weights(self) -> None:
        if not self._has_finite_weights:  # a sound network can overflow, request after request
            refuse_damaged_weights(self)
            self._has_finite_weights = True

    def _in_evaluation(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """Run chunks in evaluation mode; every module is left as it was."""
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            return self.forward_chunks(chunks)
        finally:
            for module in training:
                module.training = True


class BaiChuanForCausalLM(BaichuanForCausalLM):
    """Baichuan-7B under the name that its published configuration gives (capital C)."""
