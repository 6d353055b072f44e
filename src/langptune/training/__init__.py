"""Training: contrastive learning for the decoder, reinforcement learning for the encoder, checkpoints, model cards."""
