"""To be run by a real Slicer (`Slicer --python-script`): the assumptions on PythonQt, then the module's self test.

Says how much it ran; silence is a failure. See `Testing/test_slicer_application.py`.
"""

from __future__ import annotations

import sys
import traceback
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    """Exit status 0 if everything ran and passed."""
    import slicer

    import SAMRegistration
    from headless_slicer.conformance import check_all

    try:
        slicer.util.selectModule("SAMRegistration")
        widget = slicer.modules.samregistration.widgetRepresentation().self()
        assert widget.panel is not None, "the panel cannot be made"
        assumptions = check_all()
    except Exception:
        traceback.print_exc()
        return 1
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(SAMRegistration.SAMRegistrationTest)
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    passed = result.testsRun - len(result.failures) - len(result.errors) - len(result.skipped)
    print(f"SAMRegistration in Slicer: {assumptions} assumptions hold, {passed} of {result.testsRun} tests passed")
    return 0 if result.testsRun and passed == result.testsRun else 1


if __name__ == "__main__":
    import slicer

    slicer.util.exit(main())
