// Tests of the grader by kinds of answers: pairs that are right and pairs that are not, where a wrong one that is paid
// would teach a model nonsense. Most of them failed before their rule was there.
#include <gtest/gtest.h>
#include "../rewards/grader.h"

namespace grader_test {

struct Answers {
    const char *gold, *prediction;
};

struct Kind {
    const char* name;
    std::vector<Answers> right, wrong;
};

// clang-format off
static const std::vector<Kind> kinds = {
    {"numbers",
     {
         {"324", "2^2 3^4"}, {"5120", "2^{10} 5"}, {R"(2\sqrt{3})", R"(\sqrt{3} 2)"}, {"12", "3! 2!"},
         {R"(2\pi)", R"(\pi 2)"}, {"500", "2^2 125"}, {"n2^{n-1}", R"(n\cdot 2^{n-1})"}, {"n 2^{n-1}", "2^{n-1} n"},
         {"15", "5!!"}, {"105", "7!!"}, {"(2n)!!", "2^n n!"}, {R"(\frac{(2n)!}{2^n n!})", "(2n-1)!!"},
         {"60", R"(60 \%)"}, {R"(\frac{100!}{2^{50}})", R"(\frac{100\cdot 99!}{2^{50}})"},
         {"2021!", R"(2021\cdot 2020!)"}, {"2RC+R+C", "R+C+2CR"},
         {R"($\frac{\log 2}{\log 2-\log 3}$)", R"(\frac{\ln 2}{\ln 2-\ln 3})"}, {"1234", "1,234"},
         {"1000000", "1,000,000"}, {"(n-2)2^n+1", "1 + 2^n (n-2)"}, {"2+3i", "3i+2"},
         {R"(\frac{1}{2}+\frac{\sqrt{3}}{2}i)", R"(\frac{1+i\sqrt{3}}{2})"}, {"7!", "5040"},
         {R"(\frac{10!}{7!})", "720"}, {"8!!", "384"}, {R"(n!\cdot(n+1))", "(n+1)!"}, {"10^3 125", "125000"},
         {"a^2 b", "b a^2"}, {R"(4 \cdot 3!)", "24"}, {R"(\frac{2^{10} 5}{4})", "1280"}, {"3^{2}5", "45"},
         {R"(\frac{1}{2} 3)", "1.5"}, {"(x+1) 3", "3x+3"}, {"2(3)", "6"}, {"2^{n} 3^{n}", "6^n"},
         {R"(\sqrt{3}2)", R"(2\sqrt3)"}, {"e^{2} 3", "3e^2"}, {"x^2 3", "3x^2"},
         {R"(\sqrt[3]{2} 5)", R"(5\sqrt[3]{2})"}, {R"(n\cdot 3^{n-1})", "n3^{n-1}"}, {R"(\pi 2^2)", R"(4\pi)"},
         {R"(1\frac12)", "3/2"}, {"x", "1 x"},
     },
     {
         {"23^4", "2 3^4"}, {"n!", "(n-1)!"}, {"n!!", "n!"}, {"6m", "6"}, {"100200300", "100, 200"}, {"15", "5!"},
         {"120", "5!!"}, {"5", "5!"}, {"5", "5^2"}, {"x^2", "x2"}, {"2x", "x^2"}, {R"(\sqrt{3})", R"(\sqrt{3} 2)"},
         {"1234", "1, 234"}, {"8!!", "40320"}, {"n!", "n^n"}, {"n!!", "(n!)!"}, {"10^3 125", "10^{3125}"},
         {"3^{2}5", "3^{25}"}, {"x^2 3", "x^{23}"}, {"x2", "2x"}, {"2 3", "6"}, {"12 5", "60"}, {"5 10^2", "500"},
         {R"(50\% 2)", "1"}, {"5", "5x"}, {"5", R"(5\cdot 2)"}, {"5", R"(\frac{5}{})"}, {"324", "2^2 3^5"},
         {"0.5", ".55"}, {R"(\sin 2 x)", R"(2 \sin x)"}, {"7:30 AM", "7:30 PM"}, {"60", R"(60\frac{1}{2})"},
         {"5", "5 or 6"}, {"5", "5, 5.5"}, {"5", "5 (or 6)"}, {"5", "not 5"}, {"5", "between 4 and 5"},
         {"5", "less than 5"}, {"5", ">5"}, {"5", "at least 5"}, {"5", "about 5.1"}, {"5", "half of 5"}, {"5", "5k"},
         {"5", "-5 or 5"}, {"5", R"(\pm 5)"}, {"5", "5i"}, {"5", "5e"}, {"5", "5 -"}, {"5", "five"}, {"1/2", "1 2"},
         {R"(\sqrt{2})", R"(\sqrt{2}, -\sqrt{2})"}, {"18", "18x"}, {"18", "1 8"},
     }},
    {"lists",
     {
         {"1, 2, 100", "1,2,100"}, {"1,2,100", "1, 2, 100"}, {"100, 1, 2", "1,2,100"}, {"1,2,100", "100,2,1"},
         {"27,54,108,135,189,216,270,297,351,378", "378, 351, 297, 270, 216, 189, 135, 108, 54, 27"},
         {"-1,100,-200", "-200, -1, 100"}, {"(1,2]", R"(x \in (1,2])"},
         {R"($2$,$-6-4 \sqrt{2}$)", R"(-6-4\sqrt2, 2)"}, {R"(2,-\log _{10} 250)", R"(2, -\log 250)"},
         {R"(2,-\log _{10} 250)", R"(2, 1-\log_{10} 2500)"}, {R"(2,-\log _{10} 250)", R"(2, -\log_{10}(250))"},
         {"2500,7500", "2,500 and 7,500"}, {"2500,7500", "7500, 2500"}, {"100, 200, 300", "300,200,100"},
         {"1000, 2000", "2,000 and 1,000"}, {"2, 3, 5, 7, 11, 13, 17, 19, 23, 29", "29,23,19,17,13,11,7,5,3,2"},
         {"1,2,3", "3, 1, 2"}, {"1,2,100", "1; 2; 100"}, {"(1,2,100)", "(1, 2, 100)"}, {"12,345", "12345"},
         {"1,234,567", "1234567"}, {"-1,-100,-200", "-200,-100,-1"}, {"0,100,200", "0, 100, 200"},
         {"10^{3},10", "10, 1000"},
     },
     {
         {"2,2,3", "2,3,3"}, {"1,2,100", "1,2,101"}, {"1,2,100", "1, 2100"}, {"1,2100", "1, 2, 100"}, {"5, 7", "57"},
         {"1, 2", "(a) 1"}, {"[-2,7]", "(-2,7)"}, {"100, 200, 300", "300,200,101"}, {"1000, 2000", "2,000 and 1,001"},
         {"1,2,100", "1,2,10"}, {"1,2,100", "12100"}, {"12,345", "12, 345"}, {"1,234", "1.234"}, {"1,1,2", "1,2,2"}, {"16,3,1,1", "16,3,1"}, {"16,3,1,1", "16,3,3,1,1"},
     }},
    {"units",
     {
         {R"(2\sqrt{3})", R"(2\sqrt{3} cm)"}, {R"(2\sqrt{3})", R"(2\sqrt{3}\text{ cm})"},
         {R"(5\pi)", R"(5\pi\text{ cm}^2)"}, {R"(5\pi)", R"(5\pi \mathrm{~cm}^{2})"},
         {R"(2\sqrt{3})", R"(2\sqrt{3} m)"}, {R"(\frac{1}{2})", R"(\frac{1}{2} m)"}, {R"(5\pi)", R"(5\pi\ m^2)"},
         {R"(\frac{m}{2})", R"(\frac{1}{2}m)"}, {R"(\frac{m}{2})", "m/2"}, {"90", "90 degrees"},
         {R"(45^{\circ})", "45"}, {R"((45^{\circ}, 60^{\circ}),(135^{\circ}, 60^{\circ}))", "(135,60), (45,60)"},
         {R"(3\text{ hours }20\text{ minutes})", "3 hours 20 minutes"},
         {R"(5\sqrt{2})", R"(5\sqrt{2} \text{ units})"}, {R"(5\sqrt{2})", R"(5\sqrt{2}\text{ square units})"},
         {R"(5\sqrt{2})", R"($5\sqrt{2}\,\mathrm{cm}^{2}$)"}, {R"(5\sqrt{2})", R"(5\sqrt2 inches)"},
         {R"(36\pi)", R"(36\pi cubic feet)"}, {R"(\frac{ab}{2})", R"(\frac{ab}{2}\text{ cm}^2)"},
         {"x+2", R"(x+2\text{ meters})"}, {R"(\frac{3}{4}\pi)", R"(\frac{3\pi}{4}\text{ radians})"},
         {"60", R"(60\text{ km/h})"}, {"60", R"(60\ \frac{\text{km}}{\text{h}})"}, {"60", "60 miles per hour"},
         {"1,2,100", R"(1, 2, \text{ and } 100)"}, {"7:30", "7:30 p.m."}, {"2.74", "2,74 euros"},
         {"5000000", "5 million"}, {"5", "5 per day"}, {"7:30", "7:30 p.m."},
         {"60", R"(60\ \frac{\text{km}}{\text{h}})"}, {"60", R"(60\,\frac{\mathrm{km}}{\mathrm{h}^2})"},
         {R"(3\text{ hours }20\text{ minutes})", "3 hours 20 minutes"},
     },
     {
         {R"(\frac{m}{2})", R"(\frac{1}{2})"}, {"6 m", "7"}, {"$6 m$", "6"}, {"$6 m^2$", "6"},
         {R"($\frac{3}{2} m^2$)", R"(\frac{3}{2})"}, {R"(5\sqrt{2})", R"(5\text{ units})"},
         {R"(5\sqrt{2})", R"(5\sqrt{3} cm)"}, {R"(5\pi)", "5 cm"}, {R"(\frac{m}{2})", R"(\frac{n}{2})"},
         {R"(\frac{m}{2})", R"(\frac12 \text{ m})"}, {"$5 m$", "5"}, {"$x^2 m$", "x^2"}, {R"(60^\circ 30')", "1800"},
         {"7:30 am", "7:30 pm"}, {"7:30 a.m.", "7:30 p.m."}, {"5 feet", "5 miles per lie 3"},
         {R"(3\text{ hours }20\text{ minutes})", "3 hours"}, {"3 hours 20 minutes", "3 hours 25 minutes"},
         {"60", R"(60\frac{km}{2})"}, {"5", R"(5 \text{ or } 6)"}, {"5", "5 million"}, {"5000000", "5 thousand"},
         {"5", "5 hundred"}, {"5", "5 squared"}, {"5", "5 percent of 10"}, {"12", R"(12 \text{ R } 3)"},
     }},
    {"steps",
     {
         {R"(\lfloor(n+1)/2\rfloor)", R"(\lceil n/2\rceil)"},
         {R"(\lceil n / 2\rceil+1)", R"(\lfloor\frac{n+3}{2}\rfloor)"},
         {R"(m n-\lfloor m / 2\rfloor)", R"(mn - m + \lceil m/2 \rceil)"},
         {R"(\lfloor\frac{2 n-1}{5}\rfloor)", R"(\left\lfloor \frac{2n-1}{5} \right\rfloor)"},
         {R"(\lfloor\sqrt{n-1}\rfloor)", R"(\lceil\sqrt{n}\rceil-1)"},
         {R"(\lfloor\log _{2} n\rfloor+1)", R"(\lceil\log_2(n+1)\rceil)"}, {R"(\gcd(m,n))", R"(\gcd(n,m))"},
         {R"(\gcd(m,n))", "gcd(n, m)"}, {R"(\frac{mn}{\gcd(m,n)})", R"(\operatorname{lcm}(m,n))"},
         {"6", R"(\gcd(12,18))"}, {R"(\max(a,b))", R"(\frac{a+b+|a-b|}{2})"}, {R"(\max\{a,b\})", R"(\max(b,a))"},
         {"(-1)^{n}", "(-1)^{n+2}"}, {"(-1)^{n+1}", "(-1)^{n-1}"}, {"1+(-1)^n", R"(2\cos^2(\pi n/2))"},
         {R"(\binom{n}{2})", R"(\frac{n(n-1)}{2})"}, {R"(\binom{n}{k})", R"(\frac{n!}{k!(n-k)!})"},
         {R"(\binom{2n}{n})", R"(\frac{(2n)!}{(n!)^2})"}, {R"(\binom{2n}{n})", R"(\frac{(2n)!}{n!^2})"},
         {R"(\lfloor \frac{n}{2} \rfloor)", R"(\frac{2n-1+(-1)^n}{4})"},
         {R"(\lfloor \frac{n^2}{4} \rfloor)", R"(\lfloor n/2\rfloor\lceil n/2\rceil)"},
         {R"(\lfloor x+1\rfloor)", R"(\lfloor x\rfloor+1)"}, {R"(\lfloor n/2\rfloor)", "floor(n/2)"},
         {R"(\lceil n/2\rceil)", "ceil(n/2)"}, {R"(\gcd(a,b))", R"(\gcd(b,a))"}, {R"(\gcd(m,n)-1)", R"(\gcd(n,m)-1)"},
         {R"(2^{\gcd(m,n)}-1)", R"(\gcd(2^m-1,2^n-1))"}, {R"(\operatorname{lcm}(m,n))", R"(\frac{mn}{\gcd(m,n)})"},
         {R"(\max(x,y))", R"(\max(y,x))"}, {R"(\min\{m,n\})", R"(\min(n,m))"},
     },
     {
         {R"(\lfloor(2n-2)/5\rfloor)", R"(\lfloor(2n-1)/5\rfloor)"}, {R"(\lfloor x \rfloor)", R"(\lceil x \rceil)"},
         {R"(\lfloor x \rfloor)", R"(\lceil x \rceil - 1)"}, {R"(\lfloor x \rfloor)", "x"},
         {R"(\lfloor n/2 \rfloor)", R"(\lceil n/2 \rceil)"}, {R"(\lfloor n/2 \rfloor)", "n/2"},
         {R"(\lfloor n/100 \rfloor)", R"(\lfloor (n-1)/100 \rfloor)"},
         {R"(\lfloor n/2017 \rfloor)", R"(\lfloor (n+1)/2017 \rfloor)"}, {R"(\gcd(m,n))", "mn"},
         {R"(\gcd(m,n))", R"(\gcd(m,n+1))"}, {R"(\gcd(m,n))", "1"}, {R"(\gcd(m,n))", R"(\operatorname{lcm}(m,n))"},
         {"(-1)^n", "(-1)^{n+1}"}, {"(-1)^n", "1"}, {R"(\binom{n}{2})", R"(\frac{n(n+1)}{2})"},
         {R"(\frac{d !}{2 k(d-k) !})", R"(\frac{k!}{2 d(k-d)!})"}, {R"(\binom{n}{k})", R"(\binom{k}{n})"}, {R"(\binom{n}{k})", R"(\binom{n}{k+1})"},
         {R"(\lfloor n/3\rfloor)", R"(\lfloor (n+1)/3\rfloor)"}, {R"(\lfloor n/3\rfloor)", R"(\lceil n/3\rceil - 1)"},
         {R"(\lfloor (m+n)/7\rfloor)", R"(\lfloor (m+n+1)/7\rfloor)"},
         {R"(\lfloor n/365\rfloor)", R"(\lfloor n/366\rfloor)"}, {R"(\lfloor mn/2\rfloor)", R"(\lceil mn/2\rceil)"},
         {R"(\lfloor\sqrt{n}\rfloor)", R"(\lfloor\sqrt{n-1}\rfloor)"},
         {R"(\lfloor\log_2 n\rfloor)", R"(\lceil\log_2 n\rceil)"},
         {R"(\lfloor\log_2 n\rfloor)", R"(\lfloor\log_2 (n+1)\rfloor)"},
         {R"(\lfloor n\sqrt2\rfloor)", R"(\lfloor 1.414 n\rfloor)"}, {R"(\lfloor x\rfloor+\lfloor -x\rfloor)", "0"},
         {R"(\lfloor x\rfloor+\lfloor -x\rfloor)", "-1"}, {R"(x-\lfloor x\rfloor)", "0"},
         {R"(\lfloor 2x\rfloor)", R"(2\lfloor x\rfloor)"}, {R"(\gcd(m,n))", R"(\gcd(m,n)^2)"}, {R"(\gcd(m,n))", "m"},
         {R"(\gcd(m,n))", R"(\min(m,n))"}, {R"(\gcd(2m,n))", R"(\gcd(m,n))"}, {R"(\max(x,y))", "x+y"},
         {R"(\max(x,y))", R"(\min(x,y))"},
     }},
    {"nothing",
     {
         {R"(\emptyset)", R"(\text{no solution})"}, {R"(\emptyset)", "no solutions"},
         {R"(\varnothing)", "There are no real solutions."}, {"no solution", R"(\{\})"},
         {R"(\emptyset)", R"(\text{None})"}, {"no solution", "No solution."},
         {"no solution", R"(\text{no solutions})"}, {R"(\text{None})", "no solution"},
         {"no real solution", R"(\emptyset)"},
     },
     {
         {R"(\emptyset)", "0"}, {R"(\emptyset)", R"(\{0\})"}, {R"(\emptyset)", R"(\{\emptyset\})"},
         {"no solution", R"(\{\emptyset\})"}, {R"(\emptyset)", "no"}, {R"(\emptyset)", "no integer greater than 5"},
         {R"(\emptyset)", "1 solution"}, {"0", "no solution"}, {"0", "none"}, {"E", R"(\emptyset)"},
         {R"(\emptyset)", R"((-\infty,-2]\cap[2,\infty)+1)"}, {"no solution", "yes"}, {"no solution", "no"},
         {"none", "0"}, {R"(\emptyset)", R"(\infty)"}, {R"(\emptyset)", R"(\text{one solution})"},
     }},
    {"sets",
     {
         {R"((5,\infty))", R"(\{x | x>5\})"}, {R"((5,\infty))", R"(\{x : x>5\})"},
         {R"((5,\infty))", R"(\{x \in \mathbb{R} \mid x>5\})"}, {R"((-\infty,0)\cup(0,\infty))", R"(x \ne 0)"},
         {R"((-\infty,0)\cup(0,\infty))", R"(\mathbb{R} \setminus \{0\})"},
         {R"(\mathbb{R} \setminus \{0\})", R"(x \neq 0)"}, {R"(\mathbb{R} \setminus \{0\})", R"(\mathbb{R}-\{0\})"},
         {R"((-\infty,0)\cup(0,\infty))", R"(x<0 \text{ or } x>0)"}, {"(0,2)", R"((0,1]\cup[1,2))"},
         {R"((-\infty,-1)\cup(-1,1)\cup(1,\infty))", R"(x \ne 1, x \ne -1)"},
         {R"((-\infty,-1)\cup(-1,1)\cup(1,\infty))", R"(x \ne \pm 1)"}, {R"((0,1)\cup(1,\infty))", R"(x>0, x\ne 1)"},
         {"(1,5)", R"(x>1 \text{ and } x<5)"}, {R"((0,\infty))", R"(\mathbb{R}^+)"},
         {R"((-\infty, 0) \cup\{1\})", R"(\{1\}\cup (-\infty,0))"},
         {R"((-\infty, 0) \cup\{1\})", R"(x<0 \text{ or } x=1)"}, {R"([2,\infty))", R"(x\ge 2)"},
         {R"((-\infty,2)\cup(2,\infty))", R"(\{x\in\mathbb{R} : x\neq 2\})"},
         {R"((-\infty,2)\cup(2,\infty))", R"(x\in(-\infty,2)\cup(2,\infty))"},
         {R"((-\infty,-2]\cup[2,\infty))", R"(x\le -2 \text{ or } x \ge 2)"},
         {R"((-\infty,-2]\cup[2,\infty))", R"(x\ge 2 \text{ or } x \le -2)"},
         {R"((-\infty,-2]\cup[2,\infty))", R"((-\infty,-2], [2,\infty))"}, {R"(\mathbb{R})", R"((-\infty,\infty))"},
         {"[-2,7]", R"(-2\le x\le 7)"}, {"[-2,7]", R"(x\ge -2 \text{ and } x \le 7)"},
         {R"(\{1\}\cup[2,3])", R"([2,3]\cup\{1\})"}, {R"(\{1,2\}\cup\{3\})", R"(\{1,2,3\})"},
         {R"([0,1]\cup[1,2])", "[0,2]"}, {R"((0,\sqrt{2})\cup(\sqrt{2},2))", R"((0,2)\setminus\{\sqrt{2}\})"},
         {R"(\mathbb{R}\setminus\{1,2\})", R"(x\neq 1,2)"},
         {R"(\mathbb{R}\setminus\{1,2\})", R"(x\ne 1 \text{ and } x \ne 2)"}, {"1,2,100", R"(\{1,2,100\})"},
         {R"(\begin{pmatrix}1&2\\3&4\end{pmatrix})", R"(\left(\begin{array}{cc}1&2\\3&4\end{array}\right))"},
         {R"(k \geqslant 2)", R"(k\ge 2)"}, {R"(k \geqslant 2)", R"(k \in [2,\infty))"},
         {R"(\mathbb{R}\setminus\{1,2\})", R"(x\neq 1,2)"},
     },
     {
         {R"((-\infty,0)\cup(0,\infty))", R"(x \ge 0)"}, {R"((-\infty,0)\cup(0,\infty))", R"(\mathbb{R})"},
         {R"((-\infty,0)\cup(0,\infty))", R"(x \ne 1)"}, {R"((-\infty,0]\cup(0,\infty))", R"(x \ne 0)"},
         {"(0,2)", R"((0,1)\cup(1,2))"}, {R"((0,1) \cup (1,2))", "(0,2)"}, {R"(x \ne 0)", R"(y \ne 0)"},
         {R"(x \ne 0)", "x = 0"}, {"(1,5)", R"(x>1 \text{ or } x<5)"},
         {R"((-\infty,2)\cup(2,\infty))", R"(x\neq -2)"}, {R"((-\infty,2)\cup(2,\infty))", "x=2"},
         {"[-2,7]", R"(-2\le x<7)"}, {R"((-\infty,-2]\cup[2,\infty))", R"(-2\le x\le 2)"},
         {R"((-\infty,-2]\cup[2,\infty))", R"(x\ge 2)"},
         {R"((-\infty,-2]\cup[2,\infty))", R"((-\infty,-2)\cup[2,\infty))"},
         {R"((-\infty,-2]\cup[2,\infty))", R"((-\infty,-2]\cap[2,\infty))"},
         {R"((-\infty,-2]\cup[2,\infty))", R"(x\le -2 \text{ and } x\ge 2)"}, {R"(\{1,2\})", "[1,2]"},
         {"(1,2)", R"(\{1,2\})"}, {"(1,2)", "1<x<2, y>0"}, {R"(\mathbb{R}\setminus\{0\})", R"(\mathbb{R})"},
         {R"(\mathbb{R}\setminus\{0\})", R"(\{0\})"}, {R"(\mathbb{R})", "0"},
         {R"((0,2)\setminus\{\sqrt{2}\})", R"((0,2)\setminus\{1.4142\})"}, {R"(x\ne 1)", R"(x \ne 1, 2)"},
         {R"((-\infty,-2]\cup[2,\infty))", R"(x\le -2 \text{ and } x\ge 2)"}, {"5", R"(\ne 5)"}, {"5", R"(\neq 5)"},
         {"5", R"(x \ne 5)"},
     }},
    {"matrices",
     {
         {R"(\begin{pmatrix}1&2\\3&4\end{pmatrix})", R"(\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix})"},
         {R"(\begin{pmatrix}1&2\\3&4\end{pmatrix})", "[[1,2],[3,4]]"},
         {R"(\begin{pmatrix}1\\2\end{pmatrix})", R"(\begin{bmatrix}1.0\\2\end{bmatrix})"},
         {R"(\begin{pmatrix}1&2\\3&4\end{pmatrix})", R"(\begin{pmatrix}2/2&\sqrt{4}\\3&4\end{pmatrix})"},
         {R"(2\begin{pmatrix}1&2\\3&4\end{pmatrix})", R"(\begin{pmatrix}2&4\\6&8\end{pmatrix})"},
         {R"(\begin{pmatrix}1\\2\\3\end{pmatrix})", R"(\begin{bmatrix}1\\2\\3\end{bmatrix})"},
         {R"(A=\begin{pmatrix}1&2\\3&4\end{pmatrix})", R"(\begin{pmatrix}1&2\\3&4\end{pmatrix})"},
     },
     {
         {R"(\begin{pmatrix}1&2\\3&4\end{pmatrix})", R"(\begin{pmatrix}1&3\\2&4\end{pmatrix})"},
         {R"(\begin{pmatrix}1&2\\3&4\end{pmatrix})", R"(\begin{vmatrix}1&2\\3&4\end{vmatrix})"},
         {R"(\begin{pmatrix}1&2\\3&4\end{pmatrix})", "1,2,3,4"},
         {R"(\begin{pmatrix}1&2\\3&4\end{pmatrix})", R"(\begin{pmatrix}1&2&3&4\end{pmatrix})"},
         {R"(\begin{pmatrix}1&0\\0&1\end{pmatrix})", "1"},
         {R"(2\begin{pmatrix}1&2\\3&4\end{pmatrix})", R"(\begin{pmatrix}2&4\\6&4\end{pmatrix})"},
     }},
    {"parts",
     {
         {"5, 7", "(a) 5 (b) 7"}, {"(a) 5 (b) 7", "5, 7"}, {"(a) $5$, (b) $7$", "(a) 5; (b) 7"},
         {"(i) 5 (ii) 7", "5,7"}, {"(a) 3 (b) 4", "(a) 3, (b) 4"}, {"(1) 3 (2) 4", "3, 4"}, {"3, 4", "(i) 3; (ii) 4"},
     },
     {
         {"7, 5", "(a) 5 (b) 8"}, {"(a) 5 (b) 7", "(a) 7 (b) 5"}, {"(a) 3 (b) 4", "4, 3"}, {"(a) 3 (b) 4", "3"},
         {"(a) 3 (b) 4", "(a) 3 (b) 5"}, {"3,4", "(a) 4 (b) 3"},
     }},
    {"choices",
     {
         {"C", "(C)"}, {"C", "C. 12"}, {"C", R"(\text{(C)})"}, {"C", "(C) 12"}, {"C", R"(\textbf{(C)}\ 12)"},
         {"C", "C)"}, {"C", "C. 12 apples"}, {"C", R"(\text{C})"}, {"C", R"(\mathrm{(C)})"}, {"C", "[C]"},
         {"C", "Option C"}, {"C", "The answer is C"}, {"C", "C: 12"}, {"(C)", "c"}, {"B", R"(\boxed{B})"},
         {"B", R"($\textbf{(B)}$)"}, {"C", "Option C"}, {"C", "the correct answer is (C)"},
     },
     {
         {"C", "(C) or (D)"}, {"C", "(D)"}, {"C", "(C), (D)"}, {"C", "D. C"}, {"C", "A"}, {"C", "(C) or (A)"},
         {"C", "A or C"}, {"C", "Not C"}, {"C", "(A)(C)"}, {"C", "D. Vitamin C"}, {"C", "(D) C"}, {"A", "(A), (B)"},
         {"A", "A and B"}, {"A", "A, B"}, {"C", "Option D"},
     }},
    {"names",
     {
         {"(1,2)", "x=1, y=2"}, {"(1,2)", "y=2, x=1"}, {"x=1,y=2", "y=2, x=1"}, {"(x,y)=(1,2)", "y=2,x=1"},
         {"f(n)=n$, $g(n)=1", "g(n)=1, f(n)=n"}, {R"(a\equiv 1 \pmod 3)", R"(a \equiv 1 \pmod{3})"},
         {R"(x=\frac{1}{6} \pi+\pi k, \frac{1}{3} \pi+\pi k)", R"(\frac{\pi}{3}+k\pi, \frac{\pi}{6}+k\pi)"},
         {R"(x=3 \text{ or } x=-3)", R"(\pm 3)"}, {"x=100,y=200", "y=200,x=100"},
         {R"(x \equiv 1 \pmod{3})", R"(x\equiv 4 \pmod 3)"}, {R"(x \equiv 1 \pmod{3})", R"(1 \pmod 3)"},
         {R"(x \equiv 1 \pmod{3})", R"(x \equiv 1 (mod 3))"}, {"p=5,q=2", "(5,2)"}, {"p=5,q=2", "(p,q)=(5,2)"},
         {"(m,n)=(3,4)", "n=4, m=3"}, {"(x,y,z)=(1,2,3)", "x=1,y=2,z=3"},
         {"f(x)=x+1$, $f(x)=-1", R"(f(x)=-1 \text{ or } f(x)=x+1)"}, {"f(x)=x+1$,$f(x)=-1", "f(x)=-1, x+1"},
         {R"(\angle ABC=90)", R"(90^\circ)"}, {"AB=5", "BA=5"}, {"f(2x)", "f(x+x)"}, {"f(x)=2x", "f(x)=x+x"},
         {"f(x)=2x", "y=2x"},
     },
     {
         {"(2,1)", "y=2, x=1"}, {"(x,y)=(2,1)", "y=2,x=1"}, {"f(n)=n$, $g(n)=1", "f(n)=1, g(n)=n"},
         {"f(x)=2x", "g(x)=3x"}, {"x=1,y=2", "x=2,y=1"}, {"x=100,y=200", "y=100,x=200"},
         {R"(x \equiv 1 \pmod{3})", R"(x \equiv 3 \pmod{1})"}, {R"(x \equiv 1 \pmod{3})", "x=1"},
         {R"(x \equiv 1 \pmod{3})", R"(x \equiv 2 \pmod 3)"}, {R"(x \equiv 1 \pmod{3})", "3x"}, {R"(1 \pmod 3)", "1"},
         {"p=5,q=2", "(2,5)"}, {"(m,n)=(3,4)", "n=3, m=4"}, {"(x,y)=(1,2)", "(u,v)=(2,1)"},
         {"f(x)=x+1$, $f(x)=-1", "f(x)=-1, g(x)=x+1"}, {"f(x)=2x", "f(x)=2y"}, {"f(2x)", "2f(x)"}, {"AB=5", "CD=5"},
         {R"(\angle ABC=90)", R"(\angle ABC=91)"}, {R"(\sum_{k=1}^{n} k)", R"(\sum_{k=1}^{n} k^2)"},
         {R"(\int_0^1 x dx)", R"(\int_0^2 x dx)"}, {"f(2x)", "2f(x)"},
     }},
};
// clang-format on

TEST(GraderKinds, RightAndWrong) {
    for (const Kind& kind : kinds) {
        ASSERT_FALSE(kind.right.empty() || kind.wrong.empty()) << kind.name;
        for (const Answers& a : kind.right)
            EXPECT_EQ(grade(a.gold, a.prediction), Verdict::correct)
                << kind.name << ": " << a.gold << " | " << a.prediction;
        for (const Answers& a : kind.wrong)
            EXPECT_EQ(grade(a.gold, a.prediction), Verdict::wrong)
                << kind.name << ": " << a.gold << " | " << a.prediction;
    }
}

// Sums of floors with every small denominator: whole points tell each numerator from the next, in one variable and in two.
TEST(GraderKinds, EveryResidueIsMet) {
    for (int q = 2; q <= 60; q++)
        for (int shift = 0; shift < 3; shift++) {
            const std::string below = "}{" + std::to_string(q) + "}\\rfloor";
            const std::string one = "\\lfloor\\frac{n+" + std::to_string(shift) + below;
            const std::string next = "\\lfloor\\frac{n+" + std::to_string(shift + 1) + below;
            const std::string up =
                "\\lceil\\frac{n+" + std::to_string(shift - q + 1) + "}{" + std::to_string(q) + "}\\rceil";
            EXPECT_EQ(grade(one, next), Verdict::wrong) << q;
            EXPECT_EQ(grade(one, up), Verdict::correct) << one << " | " << up;
            if (q > 12) continue;
            const std::string two = "\\lfloor\\frac{m+n+" + std::to_string(shift) + below;
            const std::string two_next = "\\lfloor\\frac{n+m+" + std::to_string(shift + 1) + below;
            EXPECT_EQ(grade(two, two_next), Verdict::wrong) << q;
        }
}

// Work is bounded: long answers whose comparison would take minutes are refused in milliseconds, none is accepted for it.
TEST(GraderKinds, LongAnswersAreCutShort) {
    std::string steps, list, gold, prediction;
    for (int i = 0; i < 120; i++) steps += "+\\gcd(m,n)+\\binom{n}{k}";
    for (int i = 0; i < 100; i++) list += "\\lfloor n/" + std::to_string(i + 2) + "\\rfloor,";
    EXPECT_EQ(grade("1" + steps, "1" + steps + "+1"), Verdict::wrong);
    EXPECT_EQ(grade(list, list + "0"), Verdict::wrong);
    for (int i = 0; i < 120; i++) {
        gold += std::to_string(1000 + i) + ",";
        prediction += std::to_string(1119 - i) + ", ";
    }
    EXPECT_EQ(grade(gold, prediction), Verdict::correct);  // 120 numbers the other way round are no long comparison
}

}  // namespace grader_test
