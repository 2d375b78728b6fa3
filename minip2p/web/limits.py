"""What the server accepts at most. Whoever can reach it must not be able to take all memory or all time."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The limits of a server.

    steps: of a run. characters: of a prompt. edits: how often an edit may be edited again. cells: of a grid. queue:
    requests that wait for the model. runs, photos, maps, sources: how many of these are remembered; the least recently
    used is forgotten first. sources: those whose attention is kept for further edits. json_bytes, photo_bytes: of the
    body of a request. body_seconds: for it to arrive. photo_pixels: of a photograph. region_cells: of a
    region that was painted. map_bytes: of a run's attention maps. record_bytes: of the attention of a source.
    connections: open at once.
    """

    steps: int = 100
    characters: int = 1000
    edits: int = 50
    cells: int = 36
    queue: int = 64
    runs: int = 64
    photos: int = 16
    maps: int = 4
    sources: int = 2
    json_bytes: int = 1_000_000
    photo_bytes: int = 20_000_000
    body_seconds: float = 60
    photo_pixels: int = 50_000_000
    region_cells: int = 512 * 512
    map_bytes: int = 16_000_000
    record_bytes: int = 1_000_000_000
    connections: int = 256
