"""The method as pure functions on tensors: steering, the DDIM transition, advantages, the objective."""
