"""The tables of nuScenes with the interface of nuscenes-devkit's ``NuScenes``, as far as training scripts use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

from tpvformer.data.nuscenes.tables import by_token, read_table, stream_table, table_path

Row = Dict[str, Any]
_LARGE = ("sample_data", "ego_pose")
TABLES = (
    "category", "attribute", "visibility", "instance", "sensor", "calibrated_sensor", "ego_pose", "log", "scene",
    "sample", "sample_data", "sample_annotation", "map", "lidarseg", "panoptic",
)  # fmt: skip


class NuScenes:
    """Read a table when it is first asked for, by ``get`` or as an attribute.

    ``sample`` has the devkit's additions: ``data``, the token of the key frame of each channel, and ``anns``, the
    tokens of its boxes; ``sample_data`` has ``channel`` and ``sensor_modality``. ``map_resolution`` has no effect.
    """

    def __init__(
        self,
        version: str = "v1.0-mini",
        dataroot: str = "/data/sets/nuscenes",
        verbose: bool = True,
        map_resolution: float = 0.1,
    ) -> None:
        self.version, self.dataroot, self.verbose = version, str(dataroot), verbose
        self.table_names = list(TABLES)
        self._tables: Dict[str, List[Row]] = {}
        self._rows: Dict[str, Dict[str, Row]] = {}
        table_path(self._folder, "sample")  # raises, as the devkit does, where there is no such data set
        if verbose:
            print(f"tables of {self._folder}, each read when it is asked for")

    @property
    def table_root(self) -> str:
        """The folder of the tables."""
        return str(self._folder)

    @property
    def _folder(self) -> Path:
        return Path(self.dataroot, self.version)

    def __getattr__(self, name: str) -> List[Row]:
        if name not in TABLES:
            raise AttributeError(
                f"NuScenes.{name}: nuscenes-devkit is not installed, and tpvformer's stand-in for it has tables alone; "
                "pip install --no-deps nuscenes-devkit pyquaternion"
            )
        return self._table(name)

    def get(self, table_name: str, token: str) -> Row:
        """Return a row of a table. Raises KeyError where there is none."""
        if table_name not in TABLES:
            raise AssertionError(f"table {table_name} not found")
        self._table(table_name)
        return self._rows[table_name][token]

    def getind(self, table_name: str, token: str) -> int:
        """Return the number of a row in its table."""
        return self._table(table_name).index(self.get(table_name, token))

    def field2token(self, table_name: str, field: str, query: Any) -> List[str]:
        """Return the tokens of the rows whose ``field`` is ``query``."""
        return [row["token"] for row in self._table(table_name) if row[field] == query]

    def get_sample_data_path(self, sample_data_token: str) -> str:
        """Return the file of a record."""
        return str(Path(self.dataroot, self.get("sample_data", sample_data_token)["filename"]))

    def _table(self, name: str) -> List[Row]:
        if name not in self._tables:
            if name in _LARGE:
                rows = [row for part in stream_table(self._folder, name, "token") for row in part]
            else:
                rows = read_table(self._folder, name)
            self._tables[name] = rows
            self._rows[name] = by_token(table_path(self._folder, name), rows)
            add = {"sample": self._add_to_samples, "sample_data": self._add_to_records}.get(name)
            if add is not None:
                add(rows)
        return self._tables[name]

    def _add_to_records(self, rows: List[Row]) -> None:
        for row in rows:
            sensor = self.get("sensor", self.get("calibrated_sensor", row["calibrated_sensor_token"])["sensor_token"])
            row["channel"], row["sensor_modality"] = sensor["channel"], sensor["modality"]

    def _add_to_samples(self, rows: List[Row]) -> None:
        for row in rows:
            row["data"], row["anns"] = {}, []
        samples = self._rows["sample"]
        for record in self._table("sample_data"):
            if record["is_key_frame"] and record["sample_token"] in samples:
                samples[record["sample_token"]]["data"][record["channel"]] = record["token"]
        if (self._folder / "sample_annotation.json").is_file():
            for box in self._table("sample_annotation"):
                if box["sample_token"] in samples:
                    samples[box["sample_token"]]["anns"].append(box["token"])
