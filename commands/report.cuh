// report: a run's folder as a page, report.html, or its curve as a picture; or several runs as one page that compares them. What is drawn: eval/report*.h.
#pragma once
#include "../eval/report_compare.h"
#include "../eval/report_picture.h"
#include "../runtime/standard_files.h"
#include "session.cuh"

inline int report_command(Session& s) {
    const Options& o = s.o;
    const std::vector<std::string>& runs = o.arguments;
    std::string file = o.output;
    const bool picture = file.size() > 4 && file.compare(file.size() - 4, 4, ".svg") == 0;
    if (picture) {
        if (runs.size() > 1) fail_usage("--output %s: a picture is of one run", printable(file, 400).c_str());
        write_file_atomic(file, plot_svg(report_picture(report_open(runs[0]))));
        print_result("picture in " + printable(file, 400));
        return 0;
    }
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
