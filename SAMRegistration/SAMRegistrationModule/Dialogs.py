"""Questions to the user, in one place, so that tests can answer them."""

import slicer


class Dialogs:
    """Slicer's own dialogs."""

    def confirm(self, text: str) -> bool:
        """Ask a question; whether the answer is yes."""
        return bool(slicer.util.confirmOkCancelDisplay(text, windowTitle="SAMRegistration"))

    def chooseFolder(self) -> str:
        """A folder that the user chooses, or an empty text."""
        import qt

        return qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), "Folder with wheels")

    def saveFile(self, title: str, kind: str) -> str:
        """A file to write that the user chooses, or an empty text."""
        import qt

        return qt.QFileDialog.getSaveFileName(slicer.util.mainWindow(), title, "", kind)

    def copy(self, text: str) -> None:
        """Put a text onto the clipboard."""
        import qt

        qt.QApplication.clipboard().setText(text)
