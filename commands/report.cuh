// report: a run's folder as a page, report.html; or several runs as one that compares them. What is drawn: eval/report*.h.
#pragma once
#include "../eval/report_compare.h"
#include "../runtime/standard_files.h"
#include "session.cuh"

inline int report_command(Session& s) {
    const Options& o = s.o;
    const std::vector<std::string>& runs = o.arguments;
    std::string file = o.output;
    if (runs.size() == 1) {
        const ReportRun r = report_open(runs[0]);
        if (file.empty()) file = r.path + "/report.html";
        report_write(file, report_page(r));
        if (o.output.empty()) report_mark(r.path);
    } else {
        const std::vector<ReportArm> arms = report_arms(runs);
        if (file.empty()) file = "report.html";
        report_write(file, comparison_page(arms));
        for (const ReportArm& arm : arms) print_result(arm_text(arm));
    }
    print_result("report in " + printable(file, 400));
    return 0;
}
