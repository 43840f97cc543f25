"""Reports and evaluations as MRML tables and plots."""

import vtk

STATES = ("before", "after")


def tableOf(columns: "dict[str, list]") -> vtk.vtkTable:
    """A vtkTable of columns by title; numbers stay numbers, missing ones are NaN."""
    table = vtk.vtkTable()
    for title, values in columns.items():
        isText = any(isinstance(value, str) for value in values)
        column = vtk.vtkStringArray() if isText else vtk.vtkDoubleArray()
        column.SetName(title)
        for value in values:
            column.InsertNextValue(str(value) if isText else float("nan") if value is None else float(value))
        table.AddColumn(column)
    return table


def reportTable(report: dict) -> vtk.vtkTable:
    """A registration report as two columns, in the order in which a reader asks."""
    rows = [("preset", report.get("preset", "")), ("device", report.get("machine", {}).get("device", ""))]
    rows += [("choice", sentence) for sentence in report.get("details", {}).get("choice", {}).get("reasons", [])]
    rows += [("warning", sentence) for sentence in report.get("warnings", [])]
    rows += [("note", sentence) for sentence in report.get("notes", [])]
    rows += [(f"seconds, {stage['name']}", stage["seconds"]) for stage in report.get("stages", [])]
    rows += [("seconds, all", report.get("seconds")), ("peak memory, MiB", report.get("peak_memory_mib"))]
    for state in STATES:
        measures = report.get("similarity", {}).get(state, {})
        rows += [(f"{name.replace('_', ' ')}, {state}", value) for name, value in measures.items()]
    rows += [(name.replace("_", " "), value) for name, value in report.get("field", {}).items()]
    return tableOf({"what": [name for name, _ in rows], "value": [_readable(value) for _, value in rows]})


def evaluationTable(found: dict, labelNames: "dict[int, str] | None" = None) -> vtk.vtkTable:
    """Dice, distances and landmark errors before and after, one line per structure or point and the means."""
    rows = []
    labels = found.get("labels")
    if labels:
        for entry in labels["per_label"]:
            name = (labelNames or {}).get(entry["label"], entry["name"])
            rows += _labelRows(name, entry)
        rows += _labelRows("mean of labels", labels["mean"])
    landmarks = found.get("landmarks")
    if landmarks and landmarks.get("count"):
        for entry in landmarks["per_landmark"]:
            rows.append((entry["name"], "landmark error, mm", entry["before_mm"], entry["after_mm"]))
        for measure in ("mean", "median", "p95", "max"):
            values = [landmarks["mean"][state][f"{measure}_mm"] for state in STATES]
            rows.append((f"{measure} of landmarks", "landmark error, mm", *values))
    rows.append(("field", "folded voxels, %", None, found.get("field", {}).get("folded_percent")))
    titles = ("what", "measure", *STATES)
    return tableOf({title: [row[place] for row in rows] for place, title in enumerate(titles)})


def addEvaluationPlot(tableNode, existing=None):
    """Bars of the Dice (or landmark errors) before and after, as a chart node.

    Args:
        tableNode: the node that holds `evaluationTable`.
        existing: a chart node of an earlier evaluation, which is updated.
    """
    scene = tableNode.GetScene()
    chart = existing or scene.AddNewNodeByClass("vtkMRMLPlotChartNode", scene.GenerateUniqueName("Evaluation"))
    known = [chart.GetNthPlotSeriesNode(index) for index in range(chart.GetNumberOfPlotSeriesNodes())]
    for place, state in enumerate(STATES):
        series = known[place] if place < len(known) else scene.AddNewNodeByClass("vtkMRMLPlotSeriesNode", state)
        series.SetPlotType(series.PlotTypeBar)
        series.SetAndObserveTableNodeID(tableNode.GetID())
        series.SetLabelColumnName("what")
        series.SetYColumnName(state)
        series.SetColor(*((0.75, 0.75, 0.75) if state == "before" else (0.2, 0.5, 0.75)))
        if place >= len(known):
            chart.AddAndObservePlotSeriesNodeID(series.GetID())
    chart.SetTitle("Before and after registration")
    chart.SetYAxisTitle("Dice, or error in mm")
    return chart


def _labelRows(name: str, entry: dict) -> list:
    measures = {"dice": "Dice", "hd95_mm": "Hausdorff 95 %, mm", "center_distance_mm": "distance of centers, mm"}
    return [(name, title, *(entry[state].get(measure) for state in STATES)) for measure, title in measures.items()]


def _readable(value) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
