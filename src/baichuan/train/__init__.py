"""Fine-tuning: what is asked (arguments), what is learned (data), the run, its memory."""
