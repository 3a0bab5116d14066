"""The control process: accepts, identifies, decides, connects, counts and tells. Never reads client traffic."""
