"""A run on a folder that an earlier one has worked on."""

from __future__ import annotations

import numpy as np
import pytest
from numpy_engine import Setup, photo, statuses, upscaled

from espan_deploy.errors import InputError
from espan_deploy.stores.folder import FolderDestination


class TestResume:
    def test_what_is_current_is_skipped_whatever_the_clock_says(self, setup: Setup) -> None:
        import os

        photo(setup.source / "a.png")
        setup.run()
        os.utime(setup.source / "a.png", (0, 0))
        os.utime(setup.output / "a.png", (10**9, 10**9))
        assert statuses(setup.run()) == ["skipped"]

    def test_another_input_or_other_settings_redo_it(self, setup: Setup) -> None:
        photo(setup.source / "a.png")
        setup.run()
        assert statuses(setup.run(settings_sha256="other")) == ["done"]
        pixels = photo(setup.source / "a.png", seed=5)
        assert statuses(setup.run(settings_sha256="other")) == ["done"]
        assert np.array_equal(setup.result("a.png"), upscaled(pixels[None])[0])
        assert statuses(setup.run(settings_sha256="other")) == ["skipped"]

    def test_a_missing_output_is_made_again(self, setup: Setup) -> None:
        photo(setup.source / "a.png")
        setup.run()
        (setup.output / "a.png").unlink()
        assert statuses(setup.run()) == ["done"]

    def test_what_somebody_else_made_or_edited_is_never_replaced_unasked(self, setup: Setup) -> None:
        photo(setup.source / "a.png")
        photo(setup.source / "b.png")
        setup.output.mkdir()
        (setup.output / "a.png").write_bytes(b"precious")
        reports = setup.run()
        assert statuses(reports) == ["failed", "done"]
        assert "not made by this tool" in reports[0].error
        assert (setup.output / "a.png").read_bytes() == b"precious"
        (setup.output / "b.png").write_bytes(b"edited")
        assert statuses(setup.run()) == ["failed", "failed"]
        assert statuses(setup.run(overwrite=True)) == ["done", "done"]

    def test_a_damaged_manifest_says_nothing_and_breaks_nothing(self, setup: Setup) -> None:
        photo(setup.source / "a.png")
        setup.run()
        path = setup.output / ".espan-deploy.jsonl"
        path.write_text(path.read_text() + 'null\n[]\n{"a": 1}\n{"output": "x', encoding="utf-8")
        assert statuses(setup.run()) == ["skipped"]
        photo(setup.source / "b.png")
        assert statuses(setup.run()) == ["skipped", "done"]
        assert statuses(setup.run()) == ["skipped", "skipped"]

    def test_leftovers_of_a_killed_run_are_removed(self, setup: Setup) -> None:
        photo(setup.source / "sub" / "a.png")
        (setup.output / "sub").mkdir(parents=True)
        part = setup.output / "sub" / ".espan-deploy-x.part"
        part.write_bytes(b"half")
        setup.run()
        assert not part.exists()

    def test_a_second_run_on_the_same_folder_is_refused(self, setup: Setup) -> None:
        photo(setup.source / "a.png")
        with FolderDestination(setup.output), pytest.raises(InputError, match="another run"):
            setup.run()
