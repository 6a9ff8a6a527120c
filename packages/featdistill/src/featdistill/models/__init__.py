"""What can be rendered: the gaussian teacher and the KiloNeRF student."""
