"""From a folder of images to a folder of larger ones: decode, plan, infer and encode, overlapped."""
