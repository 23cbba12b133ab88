"""What is read of a generation_config.json: how answers are sampled; no code, file or module."""

from __future__ import annotations

from baichuan.json_fields import (
    BOOLEAN,
    Kind,
    either,
    list_of,
    number,
    one_of,
    optional,
    text,
    whole,
)

#: Settings that name tokens; the one for padding is ignored if it cannot.
TOKEN_IDS = (
    *("bos_token_id", "eos_token_id", "user_token_id", "assistant_token_id"),
    *("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"),
    *("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids"),
)
_ID = whole(-(1 << 63), 1 << 63)  # the vocabulary decides
_IDS = list_of(_ID, 200_000)
_COUNT, _SHARE, _NUMBER = whole(0, 1 << 31), number(0, 1), number(-1e9, 1e9)

_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("bos_token_id", "eos_token_id"), either(_ID, _IDS)),
    **dict.fromkeys(("user_token_id", "assistant_token_id"), _ID),
    **dict.fromkeys(("pad_token_id", "decoder_start_token_id", "forced_bos_token_id"), _ID),
    "forced_eos_token_id": either(_ID, _IDS),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), _IDS),
    **dict.fromkeys(("bad_words_ids", "force_words_ids"), list_of(_IDS, 10_000)),
    **dict.fromkeys(("max_length", "max_new_tokens", "min_length", "min_new_tokens"), _COUNT),
    **dict.fromkeys(("top_k", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), _COUNT),
    **dict.fromkeys(("num_beams", "num_return_sequences"), whole(1, 1000)),
    **dict.fromkeys(("top_p", "min_p", "top_h", "typical_p"), _SHARE),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff"), _SHARE),
    **dict.fromkeys(("temperature", "repetition_penalty", "max_time"), number(0, 1e9)),
    **dict.fromkeys(("encoder_repetition_penalty", "length_penalty", "guidance_scale"), _NUMBER),
    **dict.fromkeys(
        ("do_sample", "use_cache", "renormalize_logits", "_from_model_config"), BOOLEAN
    ),
    **dict.fromkeys(("remove_invalid_values", "output_scores", "output_logits"), BOOLEAN),
    **dict.fromkeys(("return_dict_in_generate", "output_hidden_states"), BOOLEAN),
    "early_stopping": either(BOOLEAN, one_of("never")),
    "exponential_decay_length_penalty": list_of(_NUMBER, 2),
    "stop_strings": either(text(1000), list_of(text(1000), 100)),
    "transformers_version": text(100),
}
#: By name; null leaves each of them unset.
GENERATION_FIELDS = {name: optional(kind) for name, kind in _KINDS.items()}
