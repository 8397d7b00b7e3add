"""Tiny vision-language models of random weights, and the sizes of their two parts."""

from transformers import AutoModelForImageTextToText, Gemma3Config, LlamaConfig, LlavaConfig

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"intermediate_size": 48, "vocab_size": 64}
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION |= {"intermediate_size": 48, "image_size": 16, "patch_size": 8}


def llava():
    text = LlamaConfig(**SMALL).to_dict()
    vision = {"model_type": "clip_vision_model", "projection_dim": 32} | VISION
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_id=63)
    return AutoModelForImageTextToText.from_config(config)


def gemma3():
    text = SMALL | {"head_dim": 8, "num_key_value_heads": 2}
    vision = {"model_type": "siglip_vision_model"} | VISION
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return AutoModelForImageTextToText.from_config(config)
