// Tests of rewards/: extraction, grading, rewards by name.
#include <fstream>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include "../rewards/rewards.h"

struct Pair {
    const char *first, *second;
};

// clang-format off
// gold and prediction. table_*: pairs on which four public graders were compared; rules_*: the rules of grader.h
static const Pair table_correct[] = {
    {"42", "42.0"}, {"1000", "1,000"}, {"7425000", "7,425,000"}, {"1000", "1 000"}, {"1000", "1{,}000"},
    {"11111111100", R"(11,\! 111,\! 111,\! 100)"}, {"0.4", ".4"}, {"1000.99", R"(\$1,000.99)"}, {"004", "4"},
    {"-5", "- 5"}, {"12", "12."}, {"12", R"(\text{12})"}, {R"(\frac{1}{2})", "0.5"}, {R"(\frac{1}{2})", R"(\frac12)"},
    {"1/3", R"(\cfrac{1}{3})"}, {R"(\frac{1}{2})", R"(\frac{2}{4})"}, {"1", R"(\frac3{3})"},
    {R"(\frac{1}{12})", "0.0833333333333333"}, {"63/400", R"(\frac{63}{400})"}, {"-10/9", R"(-\frac{10}{9})"},
    {R"(-\frac{1}{2})", R"(\frac{1}{-2})"}, {R"(\frac{7}{4})", R"(1\frac{3}{4})"}, {R"(\sqrt{3})", R"(\sqrt3)"},
    {R"(2\sqrt{2})", R"(\sqrt{8})"}, {R"(\frac{\sqrt{2}}{2})", R"(\frac{1}{\sqrt{2}})"}, {R"(28\%)", "28"},
    {R"(28\%)", "0.28"}, {R"(28\%)", "28 percent"}, {"5", R"(\$5)"}, {"90", R"(90^{\circ})"}, {"10", "10 cm"},
    {"125", R"(125\textnormal{ miles})"}, {"1/3", R"(\frac{1}{3} \text{meters})"}, {"1/3", R"(k = \frac{1}{3})"},
    {"x = 11", "x = 5+5+1 = 7 =11"}, {R"(\text{Evelyn})", "Evelyn"}, {"C", "(C)"}, {R"((1,\frac{9}{2}))", "(1,4.5)"},
    {R"(\{1,2,3\})", R"(\{3,2,1\})"}, {"1,2", R"(1 \text{ and } 2)"},
    {R"(1 \pm \sqrt{19})", R"(1+\sqrt{19},1-\sqrt{19})"},
    {R"((-\infty,2)\cup(3,\infty))", R"((-\infty, 2) \cup (3, \infty))"}, {R"(-2 \le x \le 7)", "[-2,7]"},
    {"[-2,7]", R"(-2 \le x \le 7)"}, {"x < 1", "-x > -1"}, {"x^2+2x+1", "(x+1)^2"}, {"204_5", "204_{5}"},
    {"2^{10}", "1024"}, {"11:21", "11:21"}, {"1000", "+0001,000.00"}, {"42", "The answer is 42"},
};

static const Pair table_wrong[] = {
    {"32349", "32, 349"}, {"12", "1,2"}, {R"(\frac{1}{3})", "0.33"}, {"33.3", R"(\frac{100}{3})"},
    {R"(\frac{63}{400})", R"(\frac{64}{400})"}, {"3.14", R"(\pi)"}, {"16386.17", "16386.16"}, {"4", R"(4\sqrt{2})"},
    {"10", "1000"}, {"x=1", "y=1"}, {"2x + z = 1", "1"}, {"7 = 11a+c", "11a+c"}, {"d", R"(\text{E})"},
    {"(1,2)", "(2,1)"}, {"(0,9)", "[0,9)"}, {"(3,1)", R"(\{1,3\})"}, {R"(\pm 2021)", "2021"}, {"x > 5", "x < 5"},
    {"(a+5)(b+2)", "(+5)(b+2)"}, {"x+2n+1", "x+1"},
    {R"(\begin{pmatrix}1/3\\1/5\end{pmatrix})", R"(\begin{pmatrix}0.33\\0.2\end{pmatrix})"}, {"204_5", "204"},
    {"12:00", "1:00"}, {"5", ""}, {R"(1 - \frac{1}{\mathrm{e}})", R"(1 + \frac{1}{\mathrm{e}})"},
};

static const Pair table_unparsable[] = {
    {"", ""},
};

static const Pair rules_correct[] = {
    {"123456789012345678901234567890", "123456789012345678901234567890"},
    {"123,456,789,012,345,678,901,234,567,890", "123456789012345678901234567890"},
    {"9007199254740993", "9007199254740993.0"}, {"18", "18."}, {"18", "18.00"}, {"18", "$18.00"}, {"18", "18 eggs"},
    {"18", "18 eggs per day"}, {"18", "18 miles/hour"}, {"18", "18 km/h"}, {"18", "$18 per hour"},
    {"5", "5.0000000001"}, {"1", "0.9999999999"}, {"0", "-0"}, {"2", "2/1"}, {"2", "4/2"}, {"0.5", "1/2"},
    {"0.333333333333", R"(\frac13)"}, {R"(0.\overline{3})", "1/3"}, {R"(0.1\overline{6})", "1/6"},
    {"0.3333333333", "1/3"}, {R"(\frac{1+\sqrt5}{2})", "1.6180339887"}, {"3 1/2", "3.5"}, {"-3 1/2", "-3.5"},
    {R"(-3\frac{1}{2})", R"(-\frac{7}{2})"}, {R"(2\frac{x}{3})", R"(\frac{2x}{3})"}, {"1.5e3", "1500"},
    {R"(6.02\times10^{23})", "602000000000000000000000"}, {"10^{-3}", "0.001"}, {"50%", "0.5"},
    {R"(50\%)", R"(\frac{1}{2})"}, {R"(12.5\%)", "1/8"}, {"1,000,000", "10^6"}, {"1 000 000", "1000000"},
    {R"(1\,000\,000)", "1000000"}, {"(1,000)", "(1,000)"}, {"(1,234)", "(1, 234)"}, {"100,200,300", "100, 200, 300"},
    {R"(\{-3, 3\})", R"(\pm 3)"}, {R"(\{\pm 3\})", R"(\{3,-3\})"}, {R"(x = \pm 3)", R"(\pm 3)"},
    {R"(x=3 \text{ or } x=-3)", "3,-3"}, {"x=3,x=-3", R"(\{3,-3\})"}, {R"(2 \pm \sqrt{3})", R"(2 \mp \sqrt{3})"},
    {"(1,2),(3,4)", "(3,4), (1,2)"}, {"(1,2,3)", "(1,2,3)"}, {"(1, 2)", "(1,2.0)"},
    {R"(\langle 1,2\rangle)", "(1,2)"}, {"(x,y)=(1,2)", "x=1, y=2"}, {"(1,2)", "1,2"}, {"(0,\\infty)", "x>0"},
    {"x>0", "(0,\\infty)"}, {R"(x \ge 0)", "[0,\\infty)"}, {R"(x \in [0,1])", "[0,1]"},
    {R"(0 \le x \le 1)", R"(1 \ge x \ge 0)"}, {"0<x<1", "(0,1)"},
    {R"(x<0 \text{ or } x>1)", "(-\\infty,0)\\cup(1,\\infty)"},
    {"(1,\\infty)\\cup(-\\infty,0)", "(-\\infty,0)\\cup(1,\\infty)"}, {R"(\mathbb{R})", "(-\\infty,\\infty)"},
    {R"(x\in\mathbb R)", R"(\mathbb{R})"}, {R"(\{x \mid x>5\})", "(5,\\infty)"}, {R"(\infty)", R"(\infty)"},
    {R"(-\infty)", R"(-\infty)"},
    {R"(\begin{pmatrix}1&2\\3&4\end{pmatrix})", R"(\begin{bmatrix}1&2\\3&4\end{bmatrix})"},
    {R"(\begin{pmatrix} -1/2 \\ 3 \end{pmatrix})", R"(\begin{pmatrix} -0.5 \\ 3 \end{pmatrix})"}, {"3:4", "6:8"},
    {"3:4", "3/4"}, {"1:2:3", "2:4:6"}, {"2x+3", "3+2x"}, {"2(x+3)", "2x+6"}, {R"(\frac{x+1}{2})", "(x+1)/2"},
    {"x^2-1", "(x-1)(x+1)"}, {R"(e^{i\pi})", "-1"}, {R"(\ln 2)", R"(\log 2)"}, {"2", R"(\log 100)"},
    {R"(\log_{10} 1000)", "3"}, {R"(\sqrt[3]{-8})", "-2"}, {"\\sin(x+\\pi)", R"(-\sin x)"},
    {R"(\tan x)", R"(\frac{\sin x}{\cos x})"}, {R"(\arcsin 1)", R"(\frac{\pi}{2})"}, {"\\sin^{-1}(1)", R"(\pi/2)"},
    {R"(\cos 60^\circ)", "1/2"}, {R"(\binom{5}{2})", "10"}, {R"(\dbinom{10}{3})", "120"},
    {R"(\lfloor 3.7\rfloor)", "3"}, {"n!", "n!"}, {R"(\frac{n!}{(n-1)!})", "n"},
    {R"(\sqrt{ab})", R"(\sqrt{a}\sqrt{b})"}, {"x^{1/2}", R"(\sqrt x)"}, {R"(2^{n}\cdot 2)", "2^{n+1}"},
    {"y=2x+1", "2x-y+1=0"}, {"x+y=1", "y=1-x"}, {"x^2+y^2=4", "x^2+y^2-4=0"},
    {R"(\frac{x^2}{4}+y^2=1)", "x^2+4y^2=4"}, {"f(x)=x^2", "x^2"}, {"f(x) = 2x", "y = 2x"}, {"a=1,b=2", "b=2,a=1"},
    {"5+6=11", "11"}, {"Yes", "yes"}, {"True", R"(\text{true})"}, {"Monday", R"(\textbf{Monday})"},
    {R"(\text{June 20})", "June 20"}, {"red, blue", "blue, red"}, {R"(\text{New York})", "New York"},
    {"B", R"(\text{B})"}, {"B", "(B) 12"}, {"B", "b"}, {"B", R"(\textbf{(B)})"}, {"(A)", "A."},
    {"D", "D: all of the above"}, {R"(5\text{ cm})", R"(5\text{ m})"}, {"5", "5 m"}, {"5", "5 m/s"},
    {"5", R"(5\,\text{m/s})"}, {"5", R"(5\ \mathrm{m}/\mathrm{s}^2)"}, {"9.8", "9.8 m/s^2"},
    {"5", R"(5\text{ cm}^3)"}, {"5", "5 square feet"}, {R"(36\pi)", R"(36\pi \text{ cm}^2)"}, {"5", "5°"},
    {"20", R"(20^\circ\text{C})"}, {"20", "20°C"}, {"5", R"(5\text{ (dollars)})"}, {"5", "€5"}, {"5", "5 元"},
    {"5", "５"}, {"-5", "−5"}, {R"(\frac12)", "½"}, {R"(\sqrt2)", "√2"}, {R"(2\pi)", "2π"}, {R"(2\times3)", "6"},
    {"x^2", "x²"}, {R"(x\le5)", "x ≤ 5"}, {"120", "5!"}, {"2", "1+1"}, {"5", R"(\boxed{5})"}, {"5", "$5$"},
    {"5", "\\(5\\)"}, {"5", R"(\displaystyle 5)"}, {"5", R"(5\!)"}, {"5", "{5}"}, {"5", "**5**"}, {"5", "x=5"},
    {"5", "x = 5."}, {"5", "= 5"}, {"5", R"(\approx 5)"}, {"12", R"(\frac{24}{2})"}, {"10", "10^1"},
    {"0.1", R"(10\%)"}, {"0", R"(\frac{0}{5})"}, {"1/0", "1/0"}, {R"(\frac{a}{b})", "a/b"}, {"ab", "ba"},
    {"xyz", "zyx"}, {"2ab", "2ba"}, {R"(\alpha+\beta)", R"(\beta+\alpha)"}, {"x_1+x_2", "x_2+x_1"},
    {"1010_2", "1010_{2}"}, {"3.0", "3"}, {"1/7", "0.1428571428"}, {"2.5", "5/2"}, {"2.50", "2.5"}, {"1.1", "1.10"},
    {"1,5", "1.5"}, {"3,14", "3.14"}, {R"(2.0\times 10^8)", R"(2\times10^8)"}, {"7:30", "7:30 PM"},
    {R"(7\!:\!30)", "7:30"}, {R"(\text{7:30 a.m.})", "7:30 am"}, {R"(\$32,\!348)", "32348"}, {R"(\$2.50)", "2.5"},
    {"2.5", R"(\$2.50)"}, {"5,000 dollars", "5000"}, {R"(8\text{ and }9)", "8, 9"}, {"i", R"(\sqrt{-1})"},
    {"(1+i)^2", "2i"}, {R"(\frac{1}{1+i})", R"(\frac{1-i}{2})"},
};

static const Pair rules_wrong[] = {
    {"123456789012345678901234567890", "123456789012345678901234567891"}, {"9007199254740993", "9007199254740992"},
    {"18", "18.5"}, {"18", "180"}, {"18", "-18"}, {"18", "18, 19"}, {"18", "18 and 19"}, {"18", "17 or 18"},
    {"1000000", "1000000.5"}, {"0", "0.0000001"}, {"1.618", R"(\frac{1+\sqrt5}{2})"}, {"50%", "0.50%"},
    {"0.25", "25"}, {"1,234", "1.234"}, {"(1,2),(3,4)", "(2,1),(3,4)"}, {"[1,2]", "(1,2)"},
    {R"(x\ge0)", "(0,\\infty)"}, {"(-\\infty, 5)", R"((-\infty,5])"}, {R"(\infty)", R"(-\infty)"}, {"3:4", "4:3"},
    {"1:2:3", "1:2:4"}, {"x^3", "x^2"}, {R"(\sqrt{x^2})", "x"}, {"|x|", "x"}, {"a^2+b^2", "(a+b)^2"},
    {"x+y=1", "x+y=2"}, {"a=1,b=2", "a=2,b=1"}, {R"(\text{Yes})", "No"}, {"A", "C"}, {"36", R"(36\pi)"}, {"5", "5!"},
    {R"(\frac{1}{0})", "5"}, {"1/0", "2/0"}, {"0/0", "1"}, {"x", "y"}, {"x", "2x"}, {"3", "III"},
    {R"(\theta)", R"(\phi)"}, {"x_1", "x_2"}, {"1010_2", "1010_{3}"}, {"14", "1110_2"}, {"1/7", "0.14285"},
    {"1.01", "1.1"}, {"60", "1:00"}, {R"(\text{five})", "5"}, {"1+2i", "1-2i"},
};

static const Pair rules_unparsable[] = {
    {"$", ""}, {"...", "5"}, {R"(\boxed{)", R"(\boxed{)"},
};

// a text and the answer in it
static const Pair extractions[] = {
    {"#### 1,234", "1,234"}, {"#### $18", "$18"}, {"####18", "18"}, {"#### 18.", "18."}, {"#### 18.00", "18.00"},
    {"The answer is 18.", "18"}, {R"(\boxed{18})", "18"}, {"#### 5\nthen\n#### 18", "18"},
    {"#### 18\nCheck: 9*2=18.0", "18"}, {"The final answer is 18 because 3 of 4", "18"}, {R"(\boxed{18)", ""},
    {R"(\fbox{18})", "18"}, {R"(<think>\boxed{5}</think> \boxed{18})", "18"}, {"1/2", "1/2"},
    {R"(<think>so \boxed{5})", ""}, {"5</think>The answer is 6", "6"}, {R"(\boxed 5)", "5"}, {R"($\boxed 5$.)", "5"},
    {R"(So 3+4=7. \boxed{7)", "7"}, {"#### Step 1\nWe add 2 and 3 to get 5", "5"}, {"#### 1. Setup\nfoo 9", "9"},
    {"Answer: 42", "42"}, {"**Answer:** 42", "42"}, {"The answer is: **42**", "42"}, {"The answer is $42$.", "42"},
    {"The answer is $42.", "$42"}, {"answer is 3 + 4 = 7.", "3 + 4 = 7"}, {"The answer is x = 5", "x = 5"},
    {"The answer is Paris.", "Paris"}, {R"(The answer is \(\frac{1}{2}\).)", R"(\frac{1}{2})"},
    {"The answer is 1,234 dollars", "1,234"}, {"The final answer is 25%.", "25%"},
    {"Final Answer: The final answer is $5$. I hope it is correct.", "5"}, {"the answer is -5", "-5"},
    {"We have 3 apples and 4 pears, 7 in total.", "7"}, {"It is -3.5", "-3.5"}, {"9-3", "3"},
    {"He has $1,234.50 left.", "1,234.50"}, {"So $x = 5$.", "x = 5"}, {"She pays $5 and $6, total $11.", "11"},
    {R"(get \frac{2}{5} of it)", R"(\frac{2}{5})"}, {"Therefore $x < 5$ is the solution.", "x < 5"},
    {"I do not know.", ""}, {"", ""}, {"It costs 5 dollars for $x$", "5"}, {"area of 12 m^2", "12"},
    {"10^6 people", "10^6"}, {"Answer \\( (9+1) \\)", "(9+1)"}, {"\xC3\xA9tait donc 105 (35 + 70 = 105).", "105"},
    {R"(\boxed{\frac{1}{\sqrt{2}}})", R"(\frac{1}{\sqrt{2}})"}, {R"(\boxed{\{1,2\}})", R"(\{1,2\})"},
    {R"(\boxed{})", ""}, {"Janeth paid 7 3/4 dollars", "7 3/4"}, {"at 12:00", "12:00"},
};
// clang-format on

static const char* verdict_name(Verdict v) {
    return v == Verdict::correct ? "correct" : v == Verdict::wrong ? "wrong" : "unparsable";
}

template <size_t N>
static void expect_verdicts(const Pair (&pairs)[N], Verdict want) {
    for (const Pair& p : pairs)
        EXPECT_STREQ(verdict_name(grade(p.first, p.second)), verdict_name(want)) << p.first << "  |  " << p.second;
}

TEST(Grader, Table) {
    expect_verdicts(table_correct, Verdict::correct);
    expect_verdicts(table_wrong, Verdict::wrong);
    expect_verdicts(table_unparsable, Verdict::unparsable);
}

TEST(Grader, Rules) {
    expect_verdicts(rules_correct, Verdict::correct);
    expect_verdicts(rules_wrong, Verdict::wrong);
    expect_verdicts(rules_unparsable, Verdict::unparsable);
}

// a huge intermediate value is no licence: found by comparing all gold answers of OlympiadBench with each other
TEST(Grader, DifferentAnswersStayDifferent) {
    EXPECT_EQ(grade(R"(\frac{100!}{2^{50}})", "2n"), Verdict::wrong);
    EXPECT_EQ(grade(R"(\frac{100!}{2^{50}})", R"(\sqrt{2})"), Verdict::wrong);
    EXPECT_EQ(grade("7", R"(10^{20}\pi - 10^{20}\pi + 5)"), Verdict::wrong);
    EXPECT_EQ(grade("0", R"(\lfloor\sqrt{n-1}\rfloor)"), Verdict::wrong);
    EXPECT_EQ(grade("0", R"(\sqrt{2}+\sqrt{3}-\sqrt{5+2\sqrt{6}})"), Verdict::correct);
    EXPECT_EQ(grade("(n-2) 2^{n}+1", "1+2^n(n-2)"), Verdict::correct);
    EXPECT_EQ(grade("10", "(2) 5"), Verdict::wrong);
}

TEST(Grader, IntegersOfAnyLength) {
    std::string a(3000, '7'), b = a;
    b[2999] = '8';
    EXPECT_EQ(grade(a, a + ".0"), Verdict::correct);
    EXPECT_EQ(grade(a, b), Verdict::wrong);
    EXPECT_EQ(grade(a, "-" + a), Verdict::wrong);
    EXPECT_EQ(grade("10^{200}", "1" + std::string(200, '0')), Verdict::correct);
    EXPECT_EQ(grade("10^{200}", "1" + std::string(199, '0') + "1"), Verdict::wrong);
}

TEST(Grader, Limits) {
    std::string huge(5000, '1'), nested = std::string(1000, '(') + "1" + std::string(1000, ')'), roots;
    for (int i = 0; i < 600; i++) roots += "\\sqrt ";
    EXPECT_EQ(grade(huge, huge), Verdict::unparsable);
    EXPECT_EQ(grade("1", huge), Verdict::wrong);
    EXPECT_EQ(grade("1", nested), Verdict::wrong);
    EXPECT_EQ(grade("1", roots + "1"), Verdict::wrong);
    EXPECT_EQ(grade("10^{10^{10^{10}}}", "10^{10}"), Verdict::wrong);
    EXPECT_EQ(grade("((((5))))", "5"), Verdict::correct);
}

// the bounds of the approximation rule
TEST(Grader, Decimals) {
    EXPECT_EQ(grade("1/3", "0.333333"), Verdict::correct);  // relative error is 10^-6
    EXPECT_EQ(grade("1/3", "0.33333"), Verdict::wrong);
    EXPECT_EQ(grade("2", "2.000002"), Verdict::correct);
    EXPECT_EQ(grade("2", "2.0000021"), Verdict::wrong);
    EXPECT_EQ(grade("100000", "100000.004"), Verdict::correct);
    EXPECT_EQ(grade("100000", "100000.01"), Verdict::wrong);  // a cent, although the relative error is 10^-7
    EXPECT_EQ(grade("0.333333", "0.3333333"), Verdict::wrong);
    EXPECT_EQ(grade("0.1", "0.10000000000000001"), Verdict::wrong);
}

TEST(Exact, Arithmetic) {
    ExactInt a = exact_from_digits("999999999999999999"), one = exact_small(1);
    EXPECT_TRUE(exact_equal(exact_add(a, one), exact_power_of_ten(18)));
    EXPECT_TRUE(exact_equal(exact_add(exact_power_of_ten(18), exact_negate(one)), a));
    EXPECT_TRUE(exact_equal(exact_mul(a, a), exact_from_digits("999999999999999998000000000000000001")));
    EXPECT_TRUE(exact_add(a, exact_negate(a)).limb.empty());
    int64_t work = 1000000;
    ExactRatio half = {one, exact_small(2)}, r;
    ASSERT_TRUE(ratio_power(half, -10, r, work));
    int v = 0;
    EXPECT_TRUE(ratio_to_int(r, 10000, v));
    EXPECT_EQ(v, 1024);
    EXPECT_FALSE(ratio_to_int(half, 10000, v));
    EXPECT_FALSE(ratio_power({exact_power_of_ten(100), one}, 4000, r, work));  // too long
    EXPECT_DOUBLE_EQ(ratio_to_double({exact_power_of_ten(300), exact_power_of_ten(299)}), 10.0);
}

TEST(Extract, Answers) {
    for (const Pair& p : extractions) EXPECT_EQ(extract_answer(p.first).text, p.second) << p.first;
}

TEST(Extract, Rules) {
    EXPECT_EQ(extract_answer("#### 4 then \\boxed{5}").rule, AnswerRule::boxed);
    EXPECT_EQ(extract_answer("answer is 4\n#### 5").rule, AnswerRule::hash);
    EXPECT_EQ(extract_answer("the answer is 4, of 5").rule, AnswerRule::phrase);
    EXPECT_EQ(extract_answer("so $x = 4$.").rule, AnswerRule::math);
    EXPECT_EQ(extract_answer("4 or 5").rule, AnswerRule::number);
    EXPECT_EQ(extract_answer("4 or 5", false).rule, AnswerRule::none);
    EXPECT_EQ(extract_answer("so $x = 4$.", false).rule, AnswerRule::none);
    EXPECT_EQ(extract_answer("nothing").rule, AnswerRule::none);
}

// each of them looked 2048 bytes ahead for what closes it: half a minute
TEST(Extract, ManyOpenFormulas) {
    std::string text;
    for (int i = 0; i < 200000; i++) text += i % 2 ? "\\(" : "\\[";
    EXPECT_EQ(extract_answer(text + "\\) \\] 7").text, "7");
}

TEST(Extract, Thinking) {
    std::string s;
    EXPECT_TRUE(text_after_thinking("a<think>b</think>c", s));
    EXPECT_EQ(s, "a\nc");
    EXPECT_TRUE(text_after_thinking("a</think>b", s));
    EXPECT_EQ(s, "b");
    EXPECT_TRUE(text_after_thinking("<think>a<think>b</think>c</think>d", s));
    EXPECT_EQ(s, "d");
    EXPECT_FALSE(text_after_thinking("a<think>b", s));
    EXPECT_FALSE(text_after_thinking("<think>a</think>b<think>c", s));
}

TEST(Extract, Strict) {
    std::string s;
    EXPECT_TRUE(strict_hash("#### 5\n#### 6", s));
    EXPECT_EQ(s, "6");
    EXPECT_FALSE(strict_hash("the answer is 6", s));
    EXPECT_FALSE(strict_hash("<think>\n#### 6", s));
    EXPECT_FALSE(strict_hash("#### Conclusion\n6", s));
    EXPECT_TRUE(strict_boxed("\\boxed{5} \\fbox{\\frac{1}{2}}", s));
    EXPECT_EQ(s, "\\frac{1}{2}");
    EXPECT_FALSE(strict_boxed("\\boxed{5} \\boxed{6", s));
    EXPECT_FALSE(strict_boxed("\\boxedx{5}", s));
}

TEST(Extract, Choice) {
    const Pair cases[] = {{"The answer is for sure D, it can't be A or B", "D"},
                          {"(A) Cecile", "A"},
                          {"D. it can't be A", "D"},
                          {"Answer: (B)", "B"},
                          {"The correct option is C.", "C"},
                          {"\\boxed{\\text{(C)}}", "C"},
                          {"I think it is A or maybe B", "B"},
                          {"b is right", ""},
                          {"<think>A</think>The answer is B", "B"},
                          {"**C**", "C"},
                          {"The answer is not clear.\nC", "C"},
                          {"\u7b54\u6848\uff1aC", "C"},
                          {"A man has 5 dollars. The answer is A.", "A"},
                          {"<think>The answer is A", ""}};
    for (const Pair& p : cases) EXPECT_EQ(extract_choice(p.first), p.second) << p.first;
}

// Bytes, LaTeX fragments and long repetitions: every function returns, and rewards are finite.
TEST(Grader, Garbage) {
    static const char* const fragments[] = {"\\frac",
                                            "\\sqrt",
                                            "{",
                                            "}",
                                            "(",
                                            ")",
                                            "[",
                                            "]",
                                            "\\{",
                                            "\\}",
                                            ",",
                                            ";",
                                            "^",
                                            "_",
                                            "1",
                                            "23",
                                            "0.5",
                                            "x",
                                            "\\pi",
                                            "+",
                                            "-",
                                            "*",
                                            "/",
                                            "=",
                                            "<",
                                            "\\le",
                                            "\\pm",
                                            "\\cup",
                                            "\\begin{pmatrix}",
                                            "\\end{pmatrix}",
                                            "&",
                                            "\\\\",
                                            "\\text{",
                                            "cm",
                                            "and",
                                            "%",
                                            "!",
                                            "|",
                                            ":",
                                            "\\sin",
                                            "\\log",
                                            "\\boxed{",
                                            "#### ",
                                            "<think>",
                                            "</think>",
                                            "The answer is ",
                                            "$",
                                            "$$",
                                            "\\(",
                                            "\\)",
                                            "\u2212",
                                            "\u00b0",
                                            ".",
                                            "\n",
                                            " ",
                                            "\\overline{",
                                            "\\infty",
                                            "\\in",
                                            "\\circ",
                                            "\\binom",
                                            "\\mathbb{R}",
                                            "\\lfloor",
                                            "\\rfloor",
                                            "300!",
                                            "2^{4000}",
                                            "1e999",
                                            "\xff",
                                            "\xe2\x88"};
    const size_t n = sizeof(fragments) / sizeof(fragments[0]);
    RewardSet all = rewards_parse("exact,accuracy,boxed,format,think_format,overlong,majority", "");
    uint64_t state = 7;
    auto next = [&](size_t below) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return (size_t)(state >> 33) % below;
    };
    auto run = [&](const std::string& s) {
        const std::vector<int> tokens(10);
        const RewardInput in = {s, s, s, true, tokens, 20};
        std::vector<float> total;
        std::vector<std::vector<float>> each;
        rewards_compute(total, each, all, {in, in}, {0, 0});
        EXPECT_TRUE(total[0] >= -1 && total[0] <= 6);
        EXPECT_EQ(total[0], total[1]);
        Verdict v = grade(s, "17.25 and 3x");
        EXPECT_TRUE(v == Verdict::wrong || v == Verdict::unparsable) << s;
        extract_choice(s);
    };
    for (int i = 0; i < 1500; i++) {
        std::string bytes, pieces;
        for (size_t k = next(100); k > 0; k--) bytes += (char)next(256);
        for (size_t k = next(50); k > 0; k--) pieces += fragments[next(n)];
        run(bytes);
        run(pieces);
    }
    for (const char* f : fragments) {
        std::string s;
        while (s.size() < 4000) s += f;
        run(s);
    }
}

static const char cases_path[] = "../shared/data/grader-cases.jsonl";

// all of them: 127 of level 1, 95 of level 2, 88 of level 3
TEST(Grader, SharedCases) {
    std::ifstream file(cases_path);
    if (!file) GTEST_SKIP() << cases_path << " is missing";
    int right[4] = {0, 0, 0, 0}, rows[4] = {0, 0, 0, 0};
    for (std::string line; std::getline(file, line);) {
        nlohmann::json row = nlohmann::json::parse(line);
        std::string kind = row["kind"], gold = row["gold"], pred = row["pred"];
        int level = row["level"];
        ASSERT_TRUE(level >= 1 && level <= 3);
        std::string answer = kind == "completion" ? extract_answer(pred).text
                             : kind == "choice"   ? extract_choice(pred)
                                                  : pred;
        bool ok = (grade(gold, answer) == Verdict::correct) == row["expected"].get<bool>();
        rows[level]++;
        right[level] += ok;
        EXPECT_TRUE(ok) << row["id"] << " " << gold << "  |  " << pred;
    }
    printf("grader cases: level 1 %d of %d, level 2 %d of %d, level 3 %d of %d\n", right[1], rows[1], right[2], rows[2],
           right[3], rows[3]);
    ASSERT_GT(rows[1], 0);
}

static float reward_of(const char* name, const std::string& completion, const std::string& gold, bool finished = true,
                       int tokens = 10, int max = 100) {
    const std::vector<int> ids(tokens);
    std::vector<float> total;
    std::vector<std::vector<float>> each;
    rewards_compute(total, each, rewards_parse(name, ""), {{gold, completion, gold, finished, ids, max}}, {0});
    return total[0];
}

TEST(Rewards, Exact) {
    EXPECT_EQ(reward_of("exact", "9*2\n#### 18.", "18"), 1.0f);
    EXPECT_EQ(reward_of("exact", "9*2\n#### $1,800", "1800"), 1.0f);
    EXPECT_EQ(reward_of("exact", "\\boxed{18}", "18"), 1.0f);
    EXPECT_EQ(reward_of("exact", "#### 17\n\\boxed{18}", "18"), 1.0f);
    EXPECT_EQ(reward_of("exact", "#### 18", "18", false), 0.0f);
    EXPECT_EQ(reward_of("exact", "The answer is 18.", "18"), 0.0f);
    EXPECT_EQ(reward_of("exact", "<think>\\boxed{18}</think> done", "18"), 0.0f);
    EXPECT_EQ(reward_of("exact", "\\boxed{18", "18"), 0.0f);
    EXPECT_EQ(reward_of("exact", "#### 18 or 19", "18"), 0.0f);
    EXPECT_EQ(reward_of("exact", "#### ", ""), 0.0f);
    EXPECT_EQ(reward_of("exact", "\\boxed{}", ""), 0.0f);
}

TEST(Rewards, AccuracyAndBoxed) {
    EXPECT_EQ(reward_of("accuracy", "The answer is 18.", "18", false), 1.0f);
    EXPECT_EQ(reward_of("accuracy", "so 18 it is", "18"), 1.0f);
    EXPECT_EQ(reward_of("accuracy", "so 19 it is", "18"), 0.0f);
    EXPECT_EQ(reward_of("accuracy", "I think it must be (C)", "C"), 1.0f);
    EXPECT_EQ(reward_of("accuracy", "", ""), 0.0f);
    EXPECT_FLOAT_EQ(reward_of("boxed", "\\boxed{18}", "18"), 1.1f);
    EXPECT_FLOAT_EQ(reward_of("boxed", "\\boxed{19}", "18"), 0.1f);
    EXPECT_FLOAT_EQ(reward_of("boxed", "\\boxed{no idea at all}", "18"), 0.0f);
    EXPECT_FLOAT_EQ(reward_of("boxed", "\\boxed{\\text{Tuesday}}", "Tuesday"), 1.1f);
    EXPECT_FLOAT_EQ(reward_of("boxed", "#### 18", "18"), 0.0f);
}

TEST(Rewards, Formats) {
    EXPECT_EQ(reward_of("format", "a\n#### 18\n", "1"), 1.0f);
    EXPECT_EQ(reward_of("format", "a \\boxed{18}. Done.", "1"), 1.0f);
    EXPECT_EQ(reward_of("format", "#### 18\nmore", "1"), 0.0f);
    EXPECT_EQ(reward_of("format", "#### 17\n#### 18", "1"), 0.0f);
    EXPECT_EQ(reward_of("format", "\\boxed{17} \\boxed{18}", "1"), 0.0f);
    EXPECT_EQ(reward_of("format", "\\boxed{17}\n#### 18", "1"), 0.0f);
    EXPECT_EQ(reward_of("format", "\\boxed{17} \\boxed{18", "1"), 0.0f);
    EXPECT_EQ(reward_of("format", "18", "1"), 0.0f);
    EXPECT_EQ(reward_of("format", "<think>\\boxed{1}</think>\\boxed{18}", "1"), 1.0f);
    EXPECT_EQ(reward_of("think_format", "<think>a\nb</think>\nc", "1"), 1.0f);
    EXPECT_EQ(reward_of("think_format", "<think></think>", "1"), 1.0f);
    EXPECT_EQ(reward_of("think_format", " <think>a</think>", "1"), 0.0f);
    EXPECT_EQ(reward_of("think_format", "<think>a<think>b</think>c", "1"), 0.0f);
    EXPECT_EQ(reward_of("think_format", "<think>a</think><think>", "1"), 0.0f);
    EXPECT_EQ(reward_of("think_format", "<think>a", "1"), 0.0f);
    EXPECT_EQ(reward_of("think_format", "a</think>", "1"), 0.0f);
}

TEST(Rewards, Overlong) {  // cache 20 of 100
    EXPECT_FLOAT_EQ(reward_of("overlong", "", "1", true, 1, 100), 0.0f);
    EXPECT_FLOAT_EQ(reward_of("overlong", "", "1", true, 80, 100), 0.0f);
    EXPECT_FLOAT_EQ(reward_of("overlong", "", "1", true, 85, 100), -0.25f);
    EXPECT_FLOAT_EQ(reward_of("overlong", "", "1", true, 100, 100), -1.0f);
    EXPECT_FLOAT_EQ(reward_of("overlong", "", "1", true, 200, 100), -1.0f);
    EXPECT_FLOAT_EQ(reward_of("overlong", "", "1", true, 3, 3), -1.0f);
    EXPECT_FLOAT_EQ(reward_of("overlong", "", "1", true, 3, 0), 0.0f);
}

// TRL 1.16.0's own numbers:
//   from trl.rewards import get_repetition_penalty_reward as rep, get_soft_overlong_punishment as soft
//   [soft(100, c)([[1] * n for n in (1, 36, 50, 80, 90, 100, 101)]) for c in (20, 64)]
//   [rep(n, p)([[1,2,3,4], [5]*5, [1,2,3]*4, [1,2], [7,8,7,8,7,8,9], []]) for n, p in ((3, -1.0), (2, -1.0), (1, -0.5))]
//   trl.rewards.accuracy_rewards.get_cosine_scaled_reward(max_len=...)([[{"content": r"\boxed{7}"}]], ["$7$"], [[1] * n])
// the last with accuracy_reward in place of Math-Verify as 1 for a 7 and 0 for an 8
TEST(Rewards, LengthsAsTrl) {
    const int lengths[] = {1, 36, 50, 80, 90, 100, 101};
    const double of_20[] = {0, 0, 0, 0, -0.5, -1, -1}, of_64[] = {0, 0, -0.21875, -0.6875, -0.84375, -1, -1};
    for (int i = 0; i < 7; i++) {
        EXPECT_FLOAT_EQ(reward_of("soft_overlong_punishment", "", "1", true, lengths[i], 100), of_20[i]);
        EXPECT_FLOAT_EQ(reward_of("overlong:cache=20", "", "1", true, lengths[i], 100), of_20[i]);
        EXPECT_FLOAT_EQ(reward_of("overlong:cache=64", "", "1", true, lengths[i], 100), of_64[i]);
    }
    const char* ten = "cosine:max_len=60:min_wrong=-10:max_wrong=-2:min_correct=1:max_correct=2";
    const int tokens[] = {0, 1, 25, 50, 99, 100, 130};
    const double right[] = {1, 0.999876640091433, 0.9267766952966369, 0.75, 0.500123359908567, 0.5, 0.5};
    const double right_ten[] = {2, 1.9993147673772869, 1.6294095225512604, 1.0669872981077806, 1, 1, 1};
    const double wrong_ten[] = {-10, -9.994518139018295, -7.035276180410083, -2.535898384862245, -2, -2, -2};
    for (int i = 0; i < 7; i++) {
        EXPECT_NEAR(reward_of("cosine", "\\boxed{7}", "7", true, tokens[i], 100), right[i], 1e-6);
        EXPECT_NEAR(reward_of("cosine", "\\boxed{8}", "7", true, tokens[i], 100), -right[i], 1e-6);
        EXPECT_NEAR(reward_of(ten, "\\boxed{7}", "7", true, tokens[i], 1000), right_ten[i], 1e-5);
        EXPECT_NEAR(reward_of(ten, "\\boxed{8}", "7", true, tokens[i], 1000), wrong_ten[i], 1e-5);
    }
    EXPECT_NEAR(reward_of("cosine", "\\boxed{7}", "7", false, 50, 100), -0.75, 1e-6);  // cut off: as exact has it
    EXPECT_NEAR(reward_of("cosine", "7", "7", true, 50, 100), -0.75, 1e-6);
}

TEST(Rewards, RepetitionAsTrl) {
    const std::vector<std::vector<int>> ids = {
        {1, 2, 3, 4}, {5, 5, 5, 5, 5}, {1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3}, {1, 2}, {7, 8, 7, 8, 7, 8, 9}, {}};
    const std::pair<const char*, std::vector<double>> of[] = {
        {"repetition", {0, -0.6666666666666667, -0.7, 0, -0.4, 0}},
        {"repetition_penalty_reward:n=2", {0, -0.75, -0.7272727272727273, 0, -0.5, 0}},
        {"repetition:n=1:max_penalty=-0.5", {0, -0.4, -0.375, 0, -0.2857142857142857, 0}}};
    for (const auto& [text, want] : of)
        for (size_t i = 0; i < ids.size(); i++) {
            const std::string s;
            const RewardSet set = rewards_parse(text, "");
            EXPECT_FLOAT_EQ(set.entries[0].fn.one({s, s, s, true, ids[i], 100}, set.settings[0]), want[i]) << text << i;
        }
}

// of the completions of a prompt; a 0 before the text: cut off
static std::vector<float> majority_of(const std::vector<std::string>& texts, std::vector<int> group = {}) {
    const std::string gold = "999";
    const std::vector<int> tokens(5);
    std::vector<RewardInput> in;
    for (const std::string& text : texts) in.push_back({gold, text, gold, text[0] != '0', tokens, 10});
    if (group.empty()) group.assign(texts.size(), 0);
    std::vector<float> total;
    std::vector<std::vector<float>> each;
    rewards_compute(total, each, rewards_parse("majority", ""), in, group);
    return total;
}

TEST(Rewards, Majority) {
    typedef std::vector<float> V;
    EXPECT_EQ(majority_of({"#### 4", "#### 5", "\\boxed{4.0}", "4"}), (V{1, 0, 1, 0}));  // equal as mathematics
    EXPECT_EQ(majority_of({"#### 5", "#### 4", "#### 4", "#### 5"}), (V{1, 0, 0, 1}));   // of two the first
    EXPECT_EQ(majority_of({"#### 5", "#### 4"}), (V{0, 0}));                             // nobody agrees with another
    EXPECT_EQ(majority_of({"0 #### 5", "0 #### 5", "#### 4", "#### 4"}), (V{0, 0, 1, 1}));
    EXPECT_EQ(majority_of({"\\boxed{no idea at all}", "\\boxed{no idea at all}"}), majority_of({"a", "b"}));
    EXPECT_EQ(majority_of({"\\boxed{}", "\\boxed{}"}), (V{0, 0}));
    EXPECT_EQ(majority_of({"#### 5", "#### 4", "#### 4", "#### 5", "#### 5"}, {0, 0, 1, 1, 1}), (V{0, 0, 0, 1, 1}));
}

TEST(Rewards, OfThePolicyItself) {
    const std::string s;
    const std::vector<int> tokens(5);
    std::vector<float> total;
    std::vector<std::vector<float>> each;
    const RewardSet set = rewards_parse("entropy,self_certainty", "1,10");
    EXPECT_EQ(set.traits(), (unsigned)(REWARD_ENTROPY | REWARD_SELF_CERTAINTY));
    rewards_compute(total, each, set, {{s, s, s, true, tokens, 9, {0.5f, 2.0f}}, {s, s, s, true, tokens, 9}}, {0, 0});
    EXPECT_EQ(each, (std::vector<std::vector<float>>{{-0.5f, 0.0f}, {2.0f, 0.0f}}));
    EXPECT_EQ(total, (std::vector<float>{19.5f, 0.0f}));
}

TEST(Rewards, OutcomesAreThoseThatSayRightOrWrongAndCount) {
    auto names = [](const char* funcs, const char* weights) {
        std::string all;
        for (const RewardEntry& e : outcome_rewards(rewards_parse(funcs, weights)).entries)
            all += e.name + std::string(" ");
        return all;
    };
    EXPECT_EQ(names("overlong,exact,format", ""), "exact ");
    EXPECT_EQ(names("majority,boxed,accuracy,cosine", ""), "majority boxed accuracy ");
    EXPECT_EQ(names("exact,accuracy", "0,1"), "accuracy ");
    EXPECT_EQ(names("repetition,entropy,self_certainty", ""), "");
}

static std::string usage_error(const char* names, const char* weights) {
    try {
        rewards_parse(names, weights);
    } catch (const Error& e) {
        EXPECT_EQ(e.exit_code, 2);
        return e.what();
    }
    return "";
}

TEST(Rewards, ByName) {
    RewardSet set = rewards_parse("exact, format", "1.0,0.1");
    ASSERT_EQ(set.entries.size(), 2u);
    std::string completion = "x\n#### 4", gold = "5";
    const std::vector<int> tokens(5);
    std::vector<float> total;
    std::vector<std::vector<float>> each;
    rewards_compute(total, each, set, {{gold, completion, gold, true, tokens, 10}}, {0});
    EXPECT_FLOAT_EQ(total[0], 0.1f);
    EXPECT_EQ(each, (std::vector<std::vector<float>>{{0.0f}, {1.0f}}));
    set = rewards_parse("exact, cosine:min_correct=0.25:max_len=7, soft_overlong_punishment_reward:cache=9", "");
    ASSERT_EQ(set.entries.size(), 3u);
    EXPECT_EQ(set.entries[2].name, std::string("overlong"));
    EXPECT_EQ(set.settings[1].number("min_correct"), 0.25);
    EXPECT_EQ(set.settings[1].number("max_correct"), 1.0);
    EXPECT_EQ(set.settings[2].whole("cache"), 9);
    for (const RewardEntry& e : reward_table()) EXPECT_EQ(rewards_parse(e.name, "").entries[0].name, e.name);
    EXPECT_EQ(usage_error("exact,format", ""), "");
    EXPECT_NE(usage_error("exct", "").find("did you mean exact?"), std::string::npos);
    EXPECT_NE(usage_error("thinkformat", "").find("did you mean think_format?"), std::string::npos);
    EXPECT_NE(usage_error("nonsense", "").find("exact, accuracy, boxed, majority, format, think_format, overlong"),
              std::string::npos);
    EXPECT_NE(usage_error("exact:n=3", "").find("--reward_funcs exact: n: it has no settings"), std::string::npos);
    EXPECT_NE(usage_error("repetition:m=3", "").find("not one of its settings, n, max_penalty"), std::string::npos);
    EXPECT_NE(usage_error("repetition:n=1.5", "").find("not a whole number in [1, 1024]"), std::string::npos);
    EXPECT_NE(usage_error("repetition:max_penalty=1", "").find("not a number in [-100, 0]"), std::string::npos);
    EXPECT_NE(usage_error("overlong,overlong:cache=3", "").find("'overlong' is named twice"), std::string::npos);
    EXPECT_NE(usage_error("overlong,soft_overlong_punishment", "").find("'overlong' is named twice"),
              std::string::npos);
    EXPECT_NE(usage_error("exact,format", "1").find("1 weights for 2 rewards"), std::string::npos);
    EXPECT_NE(usage_error("exact", "1x").find("'1x' is not a number"), std::string::npos);
    EXPECT_NE(usage_error("exact", "nan").find("'nan' is not a number"), std::string::npos);
    EXPECT_NE(usage_error("exact,,format", "").find("an empty name"), std::string::npos);
    EXPECT_NE(usage_error("", "").find("an empty name"), std::string::npos);
    EXPECT_NE(usage_error("exact,exact", "").find("named twice"), std::string::npos);
}

// docs/rewards.md has a row for each: its name, what it pays, what it reads
TEST(RewardsPage, HasEveryRewardAndWhatItPays) {
    std::ifstream file("docs/rewards.md");
    std::string page, line;
    while (std::getline(file, line)) page += line + "\n";
    for (size_t at; (at = page.find("\\<")) != std::string::npos;) page.erase(at, 1);
    for (const RewardEntry& r : reward_table()) {
        std::vector<std::string> traits;
        if (r.traits & REWARD_OUTCOME) traits.push_back("outcome");
        if (r.traits & REWARD_GOLD) traits.push_back("gold");
        if (r.trl) traits.push_back(std::string("[") + r.trl + "]");
        const std::string row = "| `" + r.name + "` | " + r.help + " | " + join_words(traits) + " |\n";
        EXPECT_NE(page.find(row), std::string::npos) << row;
    }
}

// every answer of the two GSM8K splits is read, and equals itself with thousands commas and cents, but not plus one
TEST(Rewards, Gsm8kSplits) {
    int rows = 0;
    for (const char* name : {"train", "test"}) {
        std::ifstream file(std::string("../shared/data/gsm8k/") + name + ".jsonl");
        for (std::string line; std::getline(file, line); rows++) {
            std::string answer = nlohmann::json::parse(line)["answer"], gold;
            for (char c : answer.substr(answer.rfind("#### ") + 5))
                if (c != ',') gold += c;  // thousands commas would make gold + ".00" a list
            EXPECT_EQ(reward_of("exact", answer, gold), 1.0f) << answer;
            EXPECT_EQ(reward_of("accuracy", answer, gold), 1.0f) << answer;
            EXPECT_EQ(grade(gold, "$" + gold + ".00"),
                      gold.find('.') == std::string::npos ? Verdict::correct : Verdict::wrong)
                << gold;
            EXPECT_EQ(grade(gold, gold + "1"), Verdict::wrong) << gold;
        }
    }
    if (rows == 0) GTEST_SKIP() << "../shared/data/gsm8k/{train,test}.jsonl are missing";
}
