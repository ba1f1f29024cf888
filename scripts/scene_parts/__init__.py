"""Parts of the scenes that are generated: `make_demo_scene.py` (a still life) and `make_city.py` (a city from the air)."""
