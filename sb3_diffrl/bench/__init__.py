"""The benchmark: train on clean demonstrations, test perturbed, fine-tune perturbed, measure."""
